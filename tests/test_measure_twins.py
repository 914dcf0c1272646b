"""The measurement behind the comparison with an autoregressive twin: its plan and samples, and that it goes on."""

import json
from dataclasses import asdict, replace
from itertools import pairwise

import measure_twins as measure
import pytest
import torch
import twin_figures
from PIL import Image

from transformers_lladav import suite
from transformers_lladav.noise import runs
from transformers_lladav.publishing import save_checkpoint
from transformers_lladav.tiny_model import TinySizes, build_model, build_processor
from transformers_lladav.twins import Lesson, fit

SMALL = TinySizes(patch_size=32, vision_hidden=16, vision_layers=1, text_hidden=16, text_layers=1)


@pytest.fixture(scope="module")
def tower(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tower") / "model"
    folder.mkdir()
    processor = build_processor(SMALL)
    save_checkpoint(build_model(SMALL, processor), processor, folder)
    return folder


@pytest.fixture(scope="module")
def workshop(tower):
    settings = measure.Settings(text_hidden=32, batch_size=2, questions=len(measure.KINDS), dialogue_questions=2)
    return measure.Workshop(tower, settings, largest=4)


def test_the_plan_has_both_twins_at_every_size_and_the_mask_at_the_largest():
    arms = measure.plan([8, 2], 3)
    assert len({arm.name for arm in arms}) == len(arms) == 2 * 2 * 3 + 3
    assert [arm.samples for arm in arms if arm.group == "autoregressive"] == [2, 2, 2, 8, 8, 8]
    masked = [arm for arm in arms if arm.conversation_mask]
    assert {(arm.twin, arm.samples, arm.group) for arm in masked} == {("diffusion", 8, "conversation_mask")}
    assert [arm.seed for arm in masked] == [0, 1, 2]


def test_kinds_are_those_about_one_scene():
    assert {"colour", "dialogue"} < set(measure.KINDS)
    for item in suite.evaluation_set("test", 2 * len(measure.KINDS), measure.KINDS):
        pictures = [part for message in item.messages for part in message["content"] if part["type"] == "image"]
        assert len(pictures) == 1


def test_no_picture_is_of_two_kinds_of_samples():
    shown = [measure.sample("facts", 0), measure.sample("dialogues", 0), measure.sample("dialogues", 1)]
    drawn = [sample["messages"][0]["content"][0]["image"].tobytes() for sample in shown]
    assert len(set(drawn)) == 3
    firsts = sorted(measure.FIRST.values())
    assert min(later - earlier for earlier, later in pairwise(firsts)) >= 10_000_000


def test_the_canvas_holds_every_answer_with_its_end(workshop):
    tokenizer = workshop.processor.tokenizer
    answers = [f" {item.answer}\n" for item in suite.evaluation_set("test", 600, measure.KINDS)]
    assert max(len(ids) for ids in tokenizer(answers, add_special_tokens=False).input_ids) <= measure.CANVAS
    assert measure.CANVAS % measure.BLOCK == 0
    for row in workshop.dialogues:
        answers = runs(row.labels != -100)
        assert {end - start for start, end in answers} == {measure.CANVAS}


def test_twins_begin_with_the_same_weights(workshop):
    one, other = workshop.untrained().state_dict(), workshop.untrained().state_dict()
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert not any("vision_tower" in name for name in one)


def test_prompts_look_in_training_as_they_do_when_they_are_answered(workshop):
    row, example = workshop.dialogues[0], measure.sample("dialogues", 0)
    asked = workshop.asked([suite.Example("", "", example["messages"][:1], "x")])[0]
    length = asked.inputs["input_ids"].shape[1]
    assert torch.equal(row.input_ids[:length], asked.inputs["input_ids"][0])
    assert torch.equal(row.media["pixel_values"], asked.inputs["pixel_values"])
    assert row.media["pixel_values"].shape == (1, 9, 16)


def test_a_sample_that_may_be_cut_is_refused(workshop, monkeypatch):
    (row,) = workshop.rows("dialogues", 1)
    monkeypatch.setattr(measure, "MAX_LENGTH", len(row))
    with pytest.raises(ValueError, match=f"dialogues 0 fills all of MAX_LENGTH={len(row)} and may be cut; raise it"):
        workshop.rows("dialogues", 1)


def test_questions_are_padded_on_the_left_and_end_before_their_answers(workshop):
    examples = suite.evaluation_set("test", 2 * len(measure.KINDS), measure.KINDS)
    together = next(part for part in workshop.asked(examples) if len(part.examples) > 1)
    tokenizer, shown = workshop.processor.tokenizer, workshop.processor.image_token_id
    ids, mask = together.inputs["input_ids"], together.inputs["attention_mask"]
    for row, present, example in zip(ids, mask, together.examples, strict=True):
        assert (present.diff() >= 0).all()
        assert (
            tokenizer.decode(row[(present == 1) & (row != shown)]) == f"{example.messages[0]['content'][-1]['text']}\n"
        )
    assert mask.sum(dim=1).max() == ids.shape[1]


def test_questions_that_follow_on_others_are_asked_alone(workshop):
    asked = workshop.asked(suite.evaluation_set("test", 4, ["dialogue", "count"]))
    kinds = [[example.kind for example in part.examples] for part in asked]
    assert kinds == [["count", "count"], ["dialogue"], ["dialogue"]]
    assert [part.turns.unique().tolist() for part in asked] == [[0], [0, 1], [0, 1]]


@pytest.mark.parametrize("twin", measure.TWINS)
def test_what_was_learned_by_heart_is_right(workshop, twin):
    """The whole way: samples, training, answers, and how they are counted."""
    example = suite.evaluation_set("test", 3, ["count"])[0]
    example = replace(example, answer="three")
    turns = [*example.messages, {"role": "assistant", "content": [{"type": "text", "text": example.answer}]}]
    row = workshop.sample_collator.prepare({"messages": turns})
    (asked,) = workshop.asked([example])
    row = replace(row, media={**row.media, "pixel_values": asked.inputs["pixel_values"]})
    model = workshop.untrained()
    fit(model, workshop.sample_collator, [row] * 4, twin, Lesson(60, 4, 0.01))
    found = measure.evaluate(model.eval(), measure.Arm(twin, 1, 0), [asked], workshop.processor.tokenizer)
    assert set(found) == set(measure.MODES[twin])
    for counts in found.values():
        assert (counts["questions"], counts["correct"]) == (1, 1)
        assert counts["kinds"]["count"] == {"questions": 1, "correct": 1, "passes": counts["passes"]}
    tokens = len(workshop.processor.tokenizer(" three\n").input_ids)
    passes = [counts["passes"] for counts in found.values()]
    if twin == "autoregressive":
        assert passes == [tokens]
    else:
        assert tokens <= passes[0] <= measure.BLOCK
        assert 1 <= passes[1] <= passes[0]
    wrong = replace(asked, examples=[replace(example, answer="two")])
    again = measure.evaluate(model, measure.Arm(twin, 1, 0), [wrong], workshop.processor.tokenizer)
    assert all(counts["correct"] == 0 for counts in again.values())


def test_a_masked_arm_is_asked_with_its_mask(workshop, monkeypatch):
    used = []
    real = measure.without_later_turns
    monkeypatch.setattr(
        measure, "without_later_turns", lambda model, turns: used.append(turns.unique().tolist()) or real(model, turns)
    )
    model = workshop.untrained().eval()
    asked = workshop.asked(suite.evaluation_set("test", 2, ["dialogue", "count"]))
    for masked in (False, True):
        arm = measure.Arm("diffusion", 4, 0, masked)
        measure.evaluate(model, arm, asked, workshop.processor.tokenizer)
    assert used == [[0, 1]] * len(measure.MODES["diffusion"])


def test_an_arm_begins_with_its_base_and_learns_from_its_samples(workshop, monkeypatch):
    given = []
    monkeypatch.setattr(measure, "fit", lambda *arguments: given.append(arguments) or [4.0, 2.0])
    monkeypatch.setattr(measure, "evaluate", lambda model, arm, asked, tokenizer: len(asked))
    base = {name: torch.full_like(weight, 0.5) for name, weight in workshop.untrained().state_dict().items()}
    found = [
        measure.train_arm(workshop, arm, base, print)
        for arm in (
            measure.Arm("autoregressive", 4, 0),
            measure.Arm("diffusion", 3, 1),
            measure.Arm("diffusion", 4, 2, conversation_mask=True),
        )
    ]
    for model, collator, rows, _, lesson, _ in given:
        assert all((weight == 0.5).all() for weight in model.state_dict().values())
        assert [row.input_ids.tolist() for row in rows] == [
            row.input_ids.tolist() for row in workshop.dialogues[: len(rows)]
        ]
        assert (collator.answer_canvas, collator.prompt, collator.block_noise) == (measure.CANVAS, "completion", 8)
        assert lesson == workshop.settings.lesson(workshop.settings.steps)
    assert [(len(rows), twin) for _, _, rows, twin, _, _ in given] == [
        (4, "autoregressive"), (3, "diffusion"), (4, "diffusion"),
    ]  # fmt: skip
    assert [(collator.seed, collator.conversation_mask) for _, collator, *_ in given] == [
        (0, False), (1, False), (2, True),
    ]  # fmt: skip
    assert [list(row["answered"]) for row in found] == [["test"], ["test"], ["test", "dialogues"]]
    assert {row["loss"] for row in found} == {3.0}


# The command


def arguments(tower, tmp_path, *more):
    return [
        "--tower", str(tower), "--folder", str(tmp_path / "run"), "--output", str(tmp_path / "twins.json"),
        "--sizes", "2", "3", "--seeds", "1", "--text-hidden", "16", "--facts", "4", "--base-steps", "1",
        "--steps", "2", "--batch-size", "2", "--questions", str(len(measure.KINDS)), "--dialogue-questions", "2",
        *more,
    ]  # fmt: skip


def test_a_run_goes_on_where_it_was_and_ends_with_a_document(tower, tmp_path, monkeypatch):
    trained, bases = [], []
    real_arm, real_base = measure.train_arm, measure.train_base

    def train_arm(workshop, arm, *given):
        if len(trained) == 2:
            raise KeyboardInterrupt
        trained.append(arm.name)
        return real_arm(workshop, arm, *given)

    def train_base(workshop, twin, *given):
        bases.append(twin)
        return real_base(workshop, twin, *given)

    monkeypatch.setattr(measure, "train_base", train_base)
    monkeypatch.setattr(measure, "train_arm", train_arm)
    with pytest.raises(KeyboardInterrupt):
        measure.main(arguments(tower, tmp_path, "--arms", "diffusion", "autoregressive"))
    assert trained == ["diffusion-2-0", "diffusion-3-0"]
    kept = (tmp_path / "run" / "arms" / "diffusion-2-0.json").read_bytes()

    def train_rest(workshop, arm, *given):
        trained.append(arm.name)
        return real_arm(workshop, arm, *given)

    monkeypatch.setattr(measure, "train_arm", train_rest)
    assert measure.main(arguments(tower, tmp_path, "--arms", "autoregressive")) == 0
    assert trained[2:] == ["autoregressive-2-0", "autoregressive-3-0"]
    assert not (tmp_path / "twins.json").exists()
    assert measure.main(arguments(tower, tmp_path)) == 0
    assert trained[4:] == ["conversation_mask-3-0"]
    assert bases == ["diffusion", "autoregressive"]
    assert (tmp_path / "run" / "arms" / "diffusion-2-0.json").read_bytes() == kept
    document = json.loads((tmp_path / "twins.json").read_text())
    assert [arm["samples"] for arm in document["arms"]] == [2, 3, 2, 3, 3]
    assert ["dialogues" in arm["answered"] for arm in document["arms"]] == [False, True, False, False, True]
    for arm in document["arms"]:
        assert set(arm["answered"]["test"]) == set(measure.MODES[arm["twin"]])
        for counts in arm["answered"]["test"].values():
            assert counts["questions"] == len(measure.KINDS) == len(counts["kinds"])
            assert counts["passes"] >= counts["questions"]
    assert document["settings"]["steps"] == 2
    assert set(document["bases"]) == set(measure.TWINS)
    assert str(tmp_path) not in json.dumps(document)


def test_a_folder_of_other_settings_or_another_tower_is_refused(tower, tmp_path):
    folder, other = tmp_path / "run", tmp_path / "other"
    measure.check_folder(folder, measure.Settings(), tower, 4)
    measure.check_folder(folder, measure.Settings(), tower, 4)
    with pytest.raises(ValueError, match=r"other settings \(steps=9 and not \d+\); pass another --folder"):
        measure.check_folder(folder, measure.Settings(steps=9), tower, 4)
    other.mkdir()
    (other / "model.safetensors").write_bytes(b"another")
    with pytest.raises(ValueError, match=r"other settings \(tower_sha256=\w+ and not \w+\)"):
        measure.check_folder(folder, measure.Settings(), other, 4)
    with pytest.raises(ValueError, match=r"other settings \(largest=8 and not 4\)"):
        measure.check_folder(folder, measure.Settings(), tower, 8)


# Tables and plot


def made_up():
    """A document whose runs get 10 of 20 right with the first seed, 12 with the second, and half as many in turns."""

    def answered(correct, passes, modes):
        kinds = {"colour": {"questions": 15, "correct": correct - 3}, "count": {"questions": 5, "correct": 3}}
        counts = {"questions": 20, "correct": correct, "passes": passes, "kinds": kinds}
        return dict.fromkeys(modes, counts)

    arms = []
    for arm in measure.plan([125, 500], 2):
        correct, modes = 10 + 2 * arm.seed + (arm.samples == 500), measure.MODES[arm.twin]
        found = {"test": answered(correct, 60 if arm.twin == "diffusion" else 80, modes)}
        found["dialogues"] = answered(correct // 2, 60, modes)
        arms.append({**asdict(arm), "cpu_seconds": {"training": 700, "answering": 20}, "answered": found})
    return {
        "command": "python measure", "settings": asdict(measure.Settings()), "language_model_parameters": 1234,
        "bases": {twin: {"cpu_seconds": 0} for twin in measure.TWINS}, "arms": arms,
    }  # fmt: skip


def test_the_table_has_means_and_spreads_of_runs_and_passes_per_answer():
    head, _, small, large, _, note = twin_figures.twins_table(made_up()).splitlines()
    # 50 % and 60 % spread by 100 * sqrt(2) / 20 points; 60 and 80 passes are for 20 questions.
    assert small == f"| 125 | {'55.0% ± 7.1 | 3.00 | ' * 2}55.0% ± 7.1 | 4.00 |"
    assert large == small.replace("| 125 |", "| 500 |").replace("55.0%", "60.0%")
    assert head.count("|") == small.count("|")
    assert "2.0 CPU hours" in note  # ten runs of 720 seconds
    assert "mean and standard deviation of 2 runs" in note
    single = made_up()
    single["arms"] = [arm for arm in single["arms"] if arm["seed"] == 0]
    assert "50.0% ± 0.0" in twin_figures.twins_table(single)


def test_the_table_of_kinds_is_of_all_of_the_largest_runs_together():
    # 8 and 10 of 15 colours, 3 of 5 numbers each time.
    assert twin_figures.twin_kinds_table(made_up()).splitlines() == [
        "|  | colour | count |",
        "|---|---:|---:|",
        "| autoregressive | 60% | 60% |",
        "| masked diffusion, a token per pass | 60% | 60% |",
    ]


def test_the_table_of_masks_is_of_the_largest_runs():
    rows = twin_figures.masks_table(made_up()).splitlines()[2:4]
    assert rows == [
        "| bidirectional | 60.0% ± 7.1 | 27.5% ± 3.5 |",
        "| no turn sees a later one | 60.0% ± 7.1 | 27.5% ± 3.5 |",
    ]


def test_the_plot_is_drawn_and_marked(tmp_path):
    twin_figures.draw_twins(made_up(), tmp_path / "twins.png", "mark")
    with Image.open(tmp_path / "twins.png") as plot:
        assert plot.info["Description"] == "mark"
        assert plot.size == (1440, 630)
