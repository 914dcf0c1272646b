"""The measurement behind the README's fine-tuning figures: its pictures, its yardsticks, and that it runs."""

import csv
import json
import random
import shlex
from pathlib import Path

import measure_finetuning as measure
import pictograms
import pytest
import render_readme as render
import torch
from PIL import Image

from transformers_lladav import asking
from transformers_lladav.recipes import find_recipe
from transformers_lladav.scene_questions import Question
from transformers_lladav.shape_scenes import make_scene, render_scene
from transformers_lladav.trainable import prepare_trainable

FOLDER = Path(__file__).parent.parent / "model_cards"


needs_font = pytest.mark.skipif(
    not pictograms.FONT.is_file(), reason=f"{pictograms.FONT} is not there (Debian: fonts-noto-color-emoji)"
)


def pairs(split, count=400):
    found = (pictograms.make_scene(split, index) for index in range(count))
    return [frozenset(item.name for item in scene.items) for scene in found if len(scene.items) == 2]


def test_held_out_pairs_are_in_no_other_split():
    assert all(pair in pictograms.HELD_OUT_PAIRS for pair in pairs("unseen_pairs"))
    for split in ("train", "validation", "test"):
        assert len(pairs(split)) == 200
        assert not any(pair in pictograms.HELD_OUT_PAIRS for pair in pairs(split))


def test_every_pictogram_is_in_two_held_out_pairs():
    for name in pictograms.NAMES:
        assert sum(name in pair for pair in pictograms.HELD_OUT_PAIRS) == 2


def test_splits_are_other_draws():
    drawn = {pictograms.make_scene(split, index) for split in pictograms.SPLITS for index in range(100)}
    assert len(drawn) == 400
    assert pictograms.make_scene("test", 3) == pictograms.make_scene("test", 3)
    with pytest.raises(ValueError, match="split='demo' is not a split of the pictograms; pass one of train"):
        pictograms.make_scene("demo", 0)


def test_pictograms_stay_in_their_cells():
    for index in range(200):
        for item in pictograms.make_scene("train", index).items:
            row, column = divmod(pictograms.PLACES.index(item.place), 2)
            assert 0.5 * column <= item.x - item.size / 2 <= item.x + item.size / 2 <= 0.5 * (column + 1)
            assert 0.5 * row <= item.y - item.size / 2 <= item.y + item.size / 2 <= 0.5 * (row + 1)


def placed(name, place):
    return pictograms.Placed(name, place, 0.25, 0.25, 0.4, 0.0)


def test_questions_have_the_answers_of_the_scene():
    two = pictograms.PictogramScene("white", (placed("apple", "top right"), placed("cat", "bottom left")))
    assert [(question.text, question.answer) for question in pictograms.questions(two)] == [
        ("What is at the top left?", "nothing"),
        ("What is at the top right?", "an apple"),
        ("What is at the bottom left?", "a cat"),
        ("What is at the bottom right?", "nothing"),
        ("Where is the apple?", "at the top right"),
        ("Where is the cat?", "at the bottom left"),
        ("How many pictograms are there?", "two"),
    ]
    one = pictograms.PictogramScene("white", (placed("cat", "top left"),))
    assert next(pictograms.questions(one)) == Question("what", "What is in the picture?", "a cat")


@needs_font
def test_pictures_show_the_pictogram_where_it_is_said_to_be():
    for place in pictograms.PLACES:
        scene = pictograms.PictogramScene("white", (pictograms._place(random.Random(0), "apple", place),))
        picture, side = pictograms.render(scene), pictograms.SIDE
        assert (picture.size, picture.mode) == ((side, side), "RGB")
        row, column = divmod(pictograms.PLACES.index(place), 2)
        pixels = [(y, x) for y in range(side) for x in range(side) if picture.getpixel((x, y)) != (252, 252, 252)]
        for y, x in pixels:
            # A turned square reaches a little over the edge of its cell.
            assert -side / 12 <= y - side / 2 * row < side / 2 + side / 12
            assert -side / 12 <= x - side / 2 * column < side / 2 + side / 12
        red, green, blue = picture.getpixel((round(side * scene.items[0].x), round(side * scene.items[0].y)))
        assert red > 200 > 100 > max(green, blue)


@needs_font
def test_every_pictogram_has_a_coloured_glyph_of_its_own():
    drawn = {pictograms.glyph(name).tobytes() for name in pictograms.NAMES}
    assert len(drawn) == len(pictograms.NAMES)
    for name in pictograms.NAMES:
        colours = pictograms.glyph(name).convert("RGB").getcolors(maxcolors=100_000)
        assert any(max(colour) - min(colour) > 60 for _, colour in colours), name


def test_without_the_font_the_error_says_where_it_is_from(tmp_path):
    with pytest.raises(FileNotFoundError, match="apt install fonts-noto-color-emoji"):
        pictograms.glyph("cat", tmp_path / "none.ttf")


@needs_font
def test_questions_go_through_the_kinds():
    asked = measure.ask_pictograms("test", 40)
    kinds = [item.question.kind for item in asked]
    assert kinds[0:10:2] == ["what", "what_is_at", "where_is", "count", "what"]
    assert kinds[1:9:2] == ["what_is_at", "where_is", "count", "what_is_at"]
    assert [item.question for item in measure.ask_pictograms("test", 7)] == [item.question for item in asked[:7]]


def test_replayed_scenes_are_of_the_training_split_only():
    asked = measure.ask_scenes(20)
    assert len(asked) == 20
    drawn = [render_scene(make_scene("train", index), 96).tobytes() for index in range(60)]
    assert all(item.picture.tobytes() in drawn for item in asked)


def test_a_table_names_its_pictures(tmp_path):
    asked = measure.ask_scenes(3)
    measure.write_table(tmp_path / "train.csv", asked)
    with (tmp_path / "train.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["question"] for row in rows] == [item.question.text for item in asked]
    for row, item in zip(rows, asked, strict=True):
        assert Image.open(tmp_path / row["image"]).tobytes() == item.picture.tobytes()


def test_exact_match_counts_by_kind():
    asked = measure.ask_scenes(3)
    texts = [asked[0].question.answer, "no such answer", asked[2].question.answer]
    counted = measure.exact_match(asked, texts)
    assert (counted["questions"], counted["correct"]) == (3, 2)
    assert sum(kind["correct"] for kind in counted["kinds"].values()) == 2
    assert sum(kind["questions"] for kind in counted["kinds"].values()) == 3


def test_the_fingerprint_is_that_of_the_base_whatever_the_adapter():
    model = asking.load(device="cpu").model
    bare = measure.base_fingerprint(model)
    prepared = prepare_trainable(model, find_recipe("lora"))
    assert measure.base_fingerprint(prepared) == bare
    weights = dict(prepared.named_parameters())
    with torch.no_grad():
        for weight in weights.values():
            if weight.requires_grad:
                weight.add_(1.0)
        assert measure.base_fingerprint(prepared) == bare
        weights[
            "base_model.model.model.language_model.layers.0.self_attn.q_proj.base_layer.weight"
        ].view(-1)[0].add_(1e-3)  # fmt: skip
    assert measure.base_fingerprint(prepared) != bare


@needs_font
def test_a_small_run_gives_what_table_and_plot_need(tmp_path):
    output = tmp_path / "finetuning.json"
    settings = ["max_steps=2", "checkpoint_every=1", "eval_answers=4", "global_batch_size=4", "device_batch_size=4"]
    settings += ["lora.rank=2", "max_length=160", "answer_canvas=48"]
    arguments = ["--pictures", "4", "--replay", "3", "--questions", "13", "--threads", "1"]
    arguments += ["--arms", "pictograms and scenes"]
    arguments += ["--output", str(output), "--sheet", str(tmp_path / "sheet.png"), "--settings", *settings]
    assert measure.main(arguments) == 0
    document = json.loads(output.read_text())
    assert document["command"] == shlex.join(["python", "model_cards/measure_finetuning.py", *arguments])
    arm = document["arms"]["pictograms and scenes"]
    assert arm["samples"] == {"pictograms": 4, "scenes": 3}
    assert arm["steps"] == 2
    assert [point["step"] for point in arm["held_out"]] == [1, 2]
    assert arm["recipe"]["lora"]["rank"] == 2
    assert arm["base_sha256"] == document["base_sha256"]
    assert arm["answers_without_adapter"] == {"questions": 13, "as_before": 13}
    assert str(tmp_path) not in arm["command"]
    table = render.finetuning_table(document)
    assert "the same, bit for bit" in table
    assert len({line.count("|") for line in table.splitlines() if line.startswith("|")}) == 1
    assert "changed. `" in render.finetuning_table({**document, "arms": {"x": {**arm, "base_sha256": {}}}})
    render.draw_finetuning(document, tmp_path / "plot.png", "mark")
    assert Image.open(tmp_path / "plot.png").info["Description"] == "mark"
    assert Image.open(tmp_path / "sheet.png").width > 1000


def test_the_committed_result_holds_what_the_readme_says():
    document = json.loads((FOLDER / "results" / "finetuning.json").read_text())
    assert document["pictograms"] == list(pictograms.NAMES)
    for arm in document["arms"].values():
        assert arm["base_sha256"] == document["base_sha256"]
        assert arm["answers_without_adapter"]["as_before"] == arm["answers_without_adapter"]["questions"]
    # Before, it names no pictogram; what is right are "nothing", places and counts.
    before = document["before"]["test"]
    assert before["kinds"]["what"]["correct"] == 0
    assert before["correct"] / before["questions"] < 0.5
    kept = document["arms"]["pictograms and scenes"]
    assert kept["after"]["test"]["correct"] / kept["after"]["test"]["questions"] >= 0.9
    assert kept["seconds"] <= 20 * 60


def test_the_committed_result_is_of_the_shipped_checkpoint():
    document = json.loads((FOLDER / "results" / "finetuning.json").read_text())
    assert document["base_sha256"]["file"] == measure.file_fingerprint(measure.WEIGHTS)


def test_the_plot_is_that_of_the_committed_result():
    assert render.plot_is_fresh("finetuning")
