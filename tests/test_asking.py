import pytest
from PIL import Image

from transformers_lladav import asking, scenes
from transformers_lladav.evaluation import evaluate


@pytest.fixture(scope="module")
def assistant():
    return asking.load(device="cpu")


def test_the_bundled_checkpoint_answers_and_says_how(assistant):
    scene = scenes.make_scene("demo", 0)
    answer = asking.ask(assistant, scenes.render(scene, 128), "How many shapes are there?")
    assert answer.text == scenes.NUMBER_WORDS[len(scene.objects) - 1]
    assert answer.stopped
    assert answer.tokens_per_forward == pytest.approx((answer.tokens + 1) / answer.denoising_steps, abs=1e-3)


def test_the_bundled_checkpoint_looks_at_the_picture(assistant):
    # The committed result has the figures; here a sample must beat the blind baseline by a wide margin.
    scores = evaluate(assistant.model, assistant.processor, "test", 140, batch_size=70)
    by_kind = {score.kind: score for score in scores}
    for kind in ("colour", "what_is_at", "where_is", "count", "caption"):
        assert by_kind[kind].correct >= 14, by_kind[kind]
        assert by_kind[kind].correct >= by_kind[kind].blind_correct + 8, by_kind[kind]


def test_drafts_go_from_masks_to_the_answer(assistant):
    drafts = []
    picture = scenes.render(scenes.make_scene("demo", 0), 64)
    answer = asking.ask(assistant, picture, "Describe the picture.", on_draft=drafts.append)
    assert len(drafts) == answer.denoising_steps
    assert "░░" in drafts[0]
    assert drafts[-1] == answer.text


def test_paths_and_other_shapes_of_pictures_are_fine(assistant, tmp_path):
    scenes.render(scenes.make_scene("demo", 1), 300).convert("RGBA").save(tmp_path / "scene.png")
    assert asking.ask(assistant, tmp_path / "scene.png", "How many shapes are there?").text in scenes.NUMBER_WORDS
    assert asking.ask(assistant, Image.new("L", (90, 30), 200), "How many shapes are there?").text


def test_an_empty_question_is_refused(assistant):
    with pytest.raises(ValueError, match="the question is empty"):
        asking.ask(assistant, Image.new("RGB", (8, 8)), "  ")


def test_draft_text_joins_runs_and_ends_at_the_end(assistant):
    tokenizer, config = assistant.processor.tokenizer, assistant.model.config
    mask, end = config.mask_token_id, config.text_config.eos_token_id
    star = tokenizer(" star", add_special_tokens=False).input_ids
    red = tokenizer("red", add_special_tokens=False).input_ids
    assert asking.draft_text([*red, *star, mask, mask, end, mask], tokenizer, config) == "red star ░░ ░░"
    assert asking.draft_text([end], tokenizer, config) == ""


def test_other_models_are_refused(tmp_path):
    with pytest.raises(OSError, match="nowhere"):
        asking.load(tmp_path / "nowhere")
