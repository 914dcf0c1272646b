"""The measurement behind the README's decoding figures: its yardsticks, and that it runs."""

import json
import re
import shlex
from pathlib import Path

import measure_decoding as measure
import pytest
import render_readme as render

from transformers_lladav import asking
from transformers_lladav.shape_scenes import MAX_OBJECTS, PLACES, make_scene

FOLDER = Path(__file__).parent.parent / "model_cards"


@pytest.fixture(scope="module")
def assistant():
    return asking.load(device="cpu")


def test_every_true_caption_is_well_formed():
    for index in range(200):
        assert measure.is_caption(measure.caption_of(make_scene("test", index))[1])


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a red star",
        "an red star at the top left",
        "a orange star at the top left",
        "a red star at the top top left",
        "a red star at the top left and a blue star at the top left",
        "a red star at the top left a blue star at the top right",
        "a red star at the top left,",
        " and ".join(f"a red star at the {place}" for place in PLACES[:3]),
        ", ".join(f"a red star at the {place}" for place in PLACES[:5]) + " and a red star at the bottom",
    ],
)
def test_what_no_scene_has_is_not_well_formed(text):
    assert not measure.is_caption(text)


@pytest.mark.parametrize(
    ("tokens", "share"),
    [([1, 2, 3, 4], 0), ([1, 2, 1, 2], 0.5), ([1, 1, 1], 2 / 3), ([], 0), ([1, 2, 3, 1, 2, 4, 1, 2], 0.5)],
)
def test_repeated_runs_are_those_that_stood_before(tokens, share):
    assert measure.repeated_share(tokens, 2) == share


def test_a_hidden_word_leaves_a_hole_of_its_length(assistant):
    scene = next(
        scene for scene in (make_scene("test", index) for index in range(100)) if len(scene.objects) == MAX_OBJECTS
    )
    caption = measure.caption_of(scene)[1]
    for item in scene.objects:
        for kind in ("colour", "shape", "place"):
            template = measure.hide(assistant, caption, item, kind)
            before, after = re.split(r"\[MASK:\d\]", template)
            assert before + getattr(item, kind) + after == caption
            ids = assistant.processor.encode_holes(template)
            whole = assistant.tokenizer(caption, add_special_tokens=False).input_ids
            assert len(ids) == len(whole)
            assert all(token in (assistant.mask_token_id, other) for token, other in zip(ids, whole, strict=True))


def test_arms_are_valid_and_different(assistant):
    arms = measure.arms()
    assert len({json.dumps(arm, sort_keys=True) for arm in arms}) == len(arms)
    for arm in arms:
        assert arm["max_new_tokens"] == measure.CANVAS
        assert render.rule_of(arm)[0] in render.RULE_NAMES


def test_a_small_run_gives_what_the_tables_need(assistant, monkeypatch, tmp_path):
    monkeypatch.setattr(measure, "arms", lambda: [
        {"max_new_tokens": 48, "block_length": 8, "max_denoising_steps": 6},
        {"max_new_tokens": 48, "block_length": 8, "threshold": 0.9},
        {"max_new_tokens": 48, "block_length": 8, "factor": 1.0},
        {"max_new_tokens": 48, "block_length": 48, "entropy_bound": 0.1},
    ])  # fmt: skip
    monkeypatch.setattr(measure, "LONG_CANVAS", 16)
    output = tmp_path / "decoding.json"
    arguments = ["--questions", "13", "--samples", "3", "--output", str(output)]
    assert measure.main(arguments) == 0
    document = json.loads(output.read_text())
    assert document["command"] == shlex.join(["python", "model_cards/measure_decoding.py", *arguments])
    assert "| threshold 0.9 | 8 | " in render.decoding_table(document)
    assert [row["hidden"] for row in document["infilling"]] == ["colour", "shape", "place"]
    assert render.infilling_table(document).count("\n") == 6
    assert render.repeats_table(document).count("| off |") == 2
    render.draw_decoding(document, tmp_path / "plot.png", "mark")
    from PIL import Image

    assert Image.open(tmp_path / "plot.png").info["Description"] == "mark"


def test_the_committed_result_is_whole_and_true():
    document = json.loads((FOLDER / "results" / "decoding.json").read_text())
    assert [arm["settings"] for arm in document["arms"]] == measure.arms()
    for arm in document["arms"]:
        assert 0 <= arm["test"]["exact_match"] <= 1
        assert 0 < arm["test"]["tokens_per_forward"] <= measure.CANVAS
    held = [row for row in document["repeats"] if row["settings"].get("no_repeat_ngram_size", 99) <= measure.REPEATED]
    assert len(held) == 4
    assert all(row["repeated_tokens"] == 0 for row in held)
