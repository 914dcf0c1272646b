import json
import subprocess
import sys

import pytest
from PIL import Image

from transformers_lladav import scenes


def lladav(*arguments, timeout=180):
    return subprocess.run(
        [sys.executable, "-m", "transformers_lladav", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=timeout,
    )


@pytest.fixture(scope="module")
def picture(tmp_path_factory):
    path = tmp_path_factory.mktemp("pictures") / "scene.png"
    scenes.render(scenes.make_scene("demo", 0), 200).save(path)
    return path


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--help"], ["ask", "demo", "eval", "train"]),
        (["ask", "--help"], ["PICTURE", "QUESTION", "--model", "--json", "--block-length"]),
        (["eval", "--help"], ["--split", "--questions", "--output"]),
        (["train", "tiny", "--help"], ["--run", "--set", "--output"]),
    ],
)
def test_help_names_what_there_is(arguments, words):
    run = lladav(*arguments)
    assert run.returncode == 0
    assert all(word in run.stdout for word in words)


def test_ask_prints_the_answer_and_its_cost(picture):
    run = lladav("ask", picture, "How many shapes are there?")
    assert run.returncode == 0, run.stderr
    first, second = run.stdout.strip().splitlines()
    assert first in scenes.NUMBER_WORDS
    assert "tokens per forward" in second


def test_ask_json_is_one_object(picture):
    run = lladav("ask", picture, "How many shapes are there?", "--json")
    record = json.loads(run.stdout)
    assert record["text"] in scenes.NUMBER_WORDS
    assert record["question"] == "How many shapes are there?"
    assert set(record) == {
        "picture", "question", "model", "text", "tokens", "denoising_steps", "tokens_per_forward", "stopped",
    }  # fmt: skip


def test_bad_input_is_one_line_and_exit_code_2(picture, tmp_path):
    (tmp_path / "notes.txt").write_text("not a picture")
    Image.new("RGB", (4, 4)).save(tmp_path / "broken.png")
    (tmp_path / "broken.png").write_bytes((tmp_path / "broken.png").read_bytes()[:40])
    cases = [
        (["ask", tmp_path / "missing.png", "What?"], "there is no such file"),
        (["ask", tmp_path / "notes.txt", "What?"], "cannot be read as a picture"),
        (["ask", tmp_path / "broken.png", "What?"], "cannot be read as a picture"),
        (["ask", picture, " "], "the question is empty"),
        (["ask", picture, "What?", "--max-new-tokens", "12", "--block-length", "8"], "pass max_new_tokens=16"),
        (["train", "tiny", "--run", tmp_path / "r", "--set", "steps"], "changes nothing"),
    ]
    for arguments, message in cases:
        run = lladav(*arguments)
        assert run.returncode == 2, arguments
        assert "Traceback" not in run.stderr
        assert message in " ".join(run.stderr.split())


def test_demo_writes_picture_and_card(tmp_path):
    run = lladav("demo", "--scene", 3, "--output", tmp_path / "out")
    assert run.returncode == 0, run.stderr
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["scene-3-answers.png", "scene-3.png"]
    assert "of 4 right" in run.stdout
    assert Image.open(tmp_path / "out" / "scene-3.png").size == (512, 512)


def test_eval_writes_a_result_file(tmp_path):
    run = lladav("eval", "--questions", 14, "--split", "validation", "--output", tmp_path / "result.json")
    assert run.returncode == 0, run.stderr
    document = json.loads((tmp_path / "result.json").read_text())
    assert [score["questions"] for score in document["splits"]["validation"]] == [2] * 7


def test_train_tiny_makes_a_checkpoint_that_answers(tmp_path, picture):
    small = ["steps=3", "tower_steps=1", "dense_steps=1", "scenes_per_step=2", "vision_layers=1", "text_layers=1"]
    changes = [part for change in small for part in ("--set", change)]
    run = lladav("train", "tiny", "--run", tmp_path / "run", "--output", tmp_path / "checkpoint", *changes)
    assert run.returncode == 0, run.stderr
    answer = lladav("ask", picture, "How many shapes are there?", "--model", tmp_path / "checkpoint", "--json")
    assert answer.returncode == 0, answer.stderr
    assert json.loads(answer.stdout)["denoising_steps"] >= 1
