"""A question about a picture, from Python: answered, watched, rated, filled in, by choices, and with any adapter."""

from pathlib import Path

import pytest
from PIL import Image

from test_adapters import load_base, save, train
from transformers_lladav import BUNDLED_CHECKPOINT, asking
from transformers_lladav.adapters import AdapterError
from transformers_lladav.eval_run import measure
from transformers_lladav.eval_tasks import open_tasks
from transformers_lladav.shape_scenes import COLOURS, NUMBER_WORDS, make_scene, render_scene


@pytest.fixture(scope="module")
def assistant():
    return asking.load(device="cpu")


def test_the_bundled_checkpoint_answers_and_says_how(assistant):
    scene = make_scene("demo", 0)
    answer = asking.ask(assistant, render_scene(scene, 128), "How many shapes are there?")
    assert answer.text == NUMBER_WORDS[len(scene.objects)]
    assert answer.stopped
    assert answer.tokens_per_forward == pytest.approx((answer.tokens + 1) / answer.denoising_steps, abs=1e-3)


def test_the_bundled_checkpoint_looks_at_the_picture(assistant):
    # The committed result has the figures; here a sample must beat the blind baseline by a wide margin.
    kinds = ("colour", "shape", "position", "count", "ocr")
    tasks = open_tasks([f"suite:test/{','.join(kinds)}"], limit=20 * len(kinds))
    by_kind = {row.kind: row for row in measure(assistant.model, assistant.processor, tasks, blind=True)}
    for kind in kinds:
        assert by_kind[kind].score >= 0.7, by_kind[kind]
        assert by_kind[kind].score >= by_kind[kind].blind_score + 0.3, by_kind[kind]


def test_drafts_go_from_masks_to_the_answer(assistant):
    drafts = []
    picture = render_scene(make_scene("demo", 0), 96)
    answer = asking.ask(assistant, picture, "Describe the picture.", on_draft=drafts.append)
    assert len(drafts) == answer.denoising_steps
    assert "░░" in drafts[0].text
    assert drafts[-1].text == answer.text
    assert drafts[-1].done


def test_paths_and_other_shapes_of_pictures_are_fine(assistant, tmp_path):
    render_scene(make_scene("demo", 1), 300).convert("RGBA").save(tmp_path / "scene.png")
    assert asking.ask(assistant, tmp_path / "scene.png", "How many shapes are there?").text in NUMBER_WORDS
    assert asking.ask(assistant, Image.new("L", (90, 30), 200), "How many shapes are there?").text


def test_an_empty_question_is_refused(assistant):
    with pytest.raises(ValueError, match="the question is empty"):
        asking.ask(assistant, Image.new("RGB", (8, 8)), "  ")


QUESTION = "Describe the picture."
CAPTION = "an orange triangle at the top left, a red star at the top right and a green triangle at the right"


@pytest.fixture(scope="module")
def scene():
    return Image.open(Path(__file__).parent.parent / "model_cards" / "assets" / "scene.png")


def test_a_threshold_gives_the_same_caption_in_fewer_passes(assistant, scene):
    exact = asking.ask(assistant, scene, QUESTION)
    fast = asking.ask(assistant, scene, QUESTION, preset="balanced")
    assert exact.text == fast.text == CAPTION
    assert exact.finish_reason == "stop"
    assert exact.tokens < exact.denoising_steps <= 8 * (exact.tokens // 8 + 1)  # blocks of 8, a token per step
    assert fast.denoising_steps <= exact.denoising_steps / 3


def test_the_tag_of_a_preset_goes_after_the_question(assistant, scene, monkeypatch):
    asked = []
    monkeypatch.setattr(
        asking, "answer", lambda assistant, messages, *_, **settings: asked.append((messages, settings))
    )
    asking.ask(assistant, scene, "How much?", preset="chartqa")
    (messages, settings) = asked[0]
    assert messages[0]["content"][-1]["text"] == "How much? /no_think"
    assert settings == {"preset": "chartqa"}
    asking.ask(assistant, scene, "How much?", preset="fast")
    assert asked[1][0][0]["content"][-1]["text"] == "How much?"


@pytest.mark.parametrize("choices", [["red", "green", "blue"], ["purple"], ["a red circle", "star"]])
def test_only_choices_are_answered(choices, assistant, scene):
    assert asking.ask(assistant, scene, "What colour is the star?", choices=choices).text in choices


def test_the_right_choice_is_made_and_rated_highest(assistant, scene):
    colours = list(COLOURS)
    assert asking.ask(assistant, scene, "What colour is the star?", choices=colours).text == "red"
    rated = asking.score(assistant, scene, "What colour is the star?", colours)
    assert rated[0].text == "red"
    assert sorted(item.text for item in rated) == sorted(colours)
    assert sum(item.share for item in rated) == pytest.approx(1)
    assert rated == asking.score(assistant, scene, "What colour is the star?", colours)


def test_choices_decide_how_long_the_canvas_is(assistant, scene):
    colours = ["red", "green"]
    for name in ("max_new_tokens", "gen_length", "block_length"):
        known = name.replace("gen_length", "max_new_tokens")
        with pytest.raises(ValueError, match=rf"^{known}=8 has no meaning with choices, which decide it; leave one"):
            asking.ask(assistant, scene, "What colour is the star?", choices=colours, **{name: 8})
    chosen = asking.ask(assistant, scene, "What colour is the star?", choices=colours, preset="docvqa")
    assert (chosen.text, chosen.denoising_steps) == ("red", 2)  # the word and the end, not the 16 steps of the preset


def test_empty_choices_are_refused(assistant, scene):
    with pytest.raises(ValueError, match="choices is empty; give at least one answer"):
        asking.ask(assistant, scene, QUESTION, choices=[])
    with pytest.raises(ValueError, match="choice 1 has no tokens"):
        asking.ask(assistant, scene, QUESTION, choices=["red", ""])


def test_holes_are_filled_with_what_is_in_the_picture(assistant, scene):
    drafts, recorder = [], asking.record(assistant, template := CAPTION.replace(" orange", " [MASK:1]", 1))
    filled = asking.fill(assistant, scene, QUESTION, template, drafts.append, recorder)
    assert (filled.text, filled.tokens, filled.finish_reason) == (CAPTION, 1, "filled")
    assert [draft.text for draft in drafts] == [CAPTION]
    recording = asking.film(recorder, scene, QUESTION, filled)
    assert (recording.answer, recording.steps) == (CAPTION, 1)
    several = CAPTION.replace("a red star", "a [MASK:2]").replace(" top right", " [MASK:1]")
    assert asking.fill(assistant, scene, QUESTION, several, drafts.append).text == CAPTION
    assert drafts[1].text.count("░░") == 2


def test_a_recording_ends_with_the_answer(assistant, scene, tmp_path):
    recorder = asking.record(assistant)
    answer = asking.ask(assistant, scene, QUESTION, None, recorder, threshold=0.9)
    film = asking.film(recorder, scene, QUESTION, answer)
    assert (film.answer, film.steps, film.question) == (CAPTION, answer.denoising_steps, QUESTION)
    film.save_gif(tmp_path / "a.gif")
    film.save_html(tmp_path / "a.html")
    assert Image.open(tmp_path / "a.gif").n_frames == answer.denoising_steps + 2


def test_a_picture_that_cannot_be_read_is_refused_before_anything_else():
    with pytest.raises(
        ValueError, match=r"the picture \(gone.png\) cannot be read as a picture: there is no such file"
    ):
        asking.read_picture("gone.png")


def test_what_is_no_checkpoint_of_ours_is_refused_before_its_weights_are_looked_for(tmp_path):
    with pytest.raises(OSError, match="nowhere"):
        asking.load(tmp_path / "nowhere")
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(ValueError, match="holds a 'bert' model; give a LLaDA-V checkpoint"):
        asking.load(tmp_path)


@pytest.fixture(scope="module")
def adapters(tmp_path_factory):
    """Two adapters that are far enough from the base for other answers."""
    place = tmp_path_factory.mktemp("runs")
    return [save(train(load_base(), seed, size=0.2), place / f"run.{seed}" / "adapter") for seed in (3, 4)]


def short(assistant, scene):
    return asking.ask(assistant, scene, QUESTION, max_new_tokens=8).text


def test_an_adapter_brings_its_base(assistant, adapters, scene):
    tuned = asking.load(device="cpu", adapter=adapters[0])
    assert tuned.model.config.name_or_path == str(BUNDLED_CHECKPOINT)
    assert not tuned.model.training
    given = short(tuned, scene)
    assert given == short(asking.load(BUNDLED_CHECKPOINT, "cpu", adapter=str(adapters[0])), scene)
    assert given != short(assistant, scene)
    rated, plain = (asking.score(item, scene, QUESTION, ["red"])[0].log_likelihood for item in (tuned, assistant))
    assert abs(rated - plain) > 1


@pytest.mark.parametrize("first", [True, False])
def test_adapters_are_switched_while_running(first, assistant, adapters, scene):
    expected = {None: short(assistant, scene)}
    expected |= {folder: short(asking.load(device="cpu", adapter=folder), scene) for folder in adapters}
    assert len(set(expected.values())) == 3
    running = asking.load(device="cpu", adapter=adapters[0] if first else None)
    for folder in (None, adapters[1], adapters[0], None, None, adapters[1]):
        asking.switch_adapter(running, folder)
        assert short(running, scene) == expected[folder]
    assert len(running.model.peft_config) == 2


def test_switching_to_what_does_not_fit_changes_nothing(assistant, adapters, scene, tmp_path):
    running = asking.load(device="cpu", adapter=adapters[0])
    before = short(running, scene)
    with pytest.raises(AdapterError, match=r"adapter_config\.json is missing"):
        asking.switch_adapter(running, tmp_path)
    assert short(running, scene) == before
