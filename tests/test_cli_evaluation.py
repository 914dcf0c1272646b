"""`lladav eval`: every option reaches the run, and tables, JSON and sheet show what it found."""

import json
import warnings
from pathlib import Path

import pytest
import typer
from PIL import Image
from typer.testing import CliRunner

from eval_samples import write_colours
from transformers_lladav import BUNDLED_CHECKPOINT, asking, eval_run
from transformers_lladav.cli_evaluation import evaluate
from transformers_lladav.eval_asking import Asking
from transformers_lladav.eval_metrics import Ignored
from transformers_lladav.eval_run import EvalSettings
from transformers_lladav.eval_tasks import ReadOptions

app = typer.Typer()
app.command("eval")(evaluate)


@app.callback()
def root():
    pass


@pytest.fixture
def run(monkeypatch):
    """Runs the command in this process; its errors are raised as they are."""
    monkeypatch.setenv("COLUMNS", "80")

    def invoke(*arguments):
        texts = [str(argument) for argument in arguments]
        monkeypatch.setattr("sys.argv", ["lladav", "eval", *texts])
        result = CliRunner().invoke(app, ["eval", *texts], catch_exceptions=False)
        assert result.exit_code == 0, result.output
        return result

    return invoke


@pytest.fixture
def settings_of(run, monkeypatch):
    """What a command line says, without running it."""

    def read(*arguments):
        seen = []
        monkeypatch.setattr(eval_run, "run_evaluation", lambda settings, bars: seen.append(settings))
        result = run(*arguments)
        assert result.stdout == ""  # as in every process but the first
        return seen[0]

    return read


def test_help_names_what_there_is(run):
    told = " ".join(run("--help").stdout.split())
    for word in ("MODEL", "--tasks", "--output", "--adapter", "--metric", "--limit", "--blind", "--sheet", "--set"):
        assert word in told
    assert "accelerate launch --num_processes 2 -m transformers_lladav eval" in told


def test_without_options_the_bundled_checkpoint_answers_the_suite(settings_of):
    assert settings_of() == EvalSettings(Path("runs/evaluation"), ("suite",), command="lladav eval")


def test_every_option_has_its_effect(settings_of):
    found = settings_of(
        "folder/of model", "-t", "a.jsonl", "--tasks", "suite:test/count,ocr", "-o", "there", "--adapter", "lora",
        "--metric", "anls", "--ignore", "case, dot", "--limit", "7", "--blind", "--batch-size", "5",
        "--preset", "docvqa", "--max-new-tokens", "16", "--block-length", "8", "--steps", "4", "--threshold", "0.5",
        "--set", "temperature=0.5", "--set", 'stop_strings=["\\n"]', "--set", "remasking=entropy", "--seed", "3",
        "--samples", "9", "--image-folder", "pictures", "--allow-outside", "--allow-urls", "--question", "What is it?",
        "--device", "cpu", "--trust-remote-code",
    )  # fmt: skip
    generation = {
        "max_new_tokens": 16, "block_length": 8, "max_denoising_steps": 4, "threshold": 0.5, "temperature": 0.5,
        "stop_strings": ["\n"], "remasking": "entropy",
    }  # fmt: skip
    command = found.command
    assert command.startswith("lladav eval 'folder/of model' -t a.jsonl --tasks suite:test/count,ocr -o there")
    assert found == EvalSettings(
        output=Path("there"),
        tasks=("a.jsonl", "suite:test/count,ocr"),
        model="folder/of model",
        adapter="lora",
        metric="anls",
        limit=7,
        blind=True,
        how=Asking(generation, "docvqa", 3, 9, 5, Ignored(case=True, dot=True)),
        read=ReadOptions(Path("pictures"), True, True, "What is it?"),
        device="cpu",
        trust_remote_code=True,
        command=command,
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--set", "temperature"], "--set temperature sets nothing; give NAME=VALUE, such as --set temperature=0.5"),
        (["--threshold", "0.5", "--set", "threshold=0.6"], "threshold was given twice; give it once"),
        (["--ignore", "caps"], "ignore='caps' is not known; choose among case, dot, articles"),
    ],
)
def test_options_that_mean_nothing_are_refused(run, arguments, message):
    with pytest.raises(ValueError, match=message):
        run(*arguments)


def test_a_run_prints_a_table_for_each_task_and_the_same_command_prints_it_again(run, tmp_path):
    path = write_colours(tmp_path)
    command = (
        "-t",
        path,
        "-t",
        "suite:test/colour",
        "-o",
        tmp_path / "out",
        "--limit",
        3,
        "--blind",
        "--device",
        "cpu",
    )
    printed = [" ".join(run(*command).stdout.split()) for _ in range(2)]
    first, again = (
        printed[0].split("Results and answers are in"),
        printed[1].split("This evaluation had ended before;"),
    )
    assert first[0] == again[0]
    tables = first[0].split("suite:test/colour: exact_match")
    header = "kind questions score 95 % interval wrong picture tokens per forward"
    assert "colours.jsonl:exact_match" in tables[0].replace(" ", "")  # a long path is wrapped
    for word in ("colour 2", "trivial 1", "all 3"):
        assert word in tables[0]
    assert "colour 3" in tables[1]
    assert "all" not in tables[1]  # there is one kind only
    for table in tables:
        assert all(word in table for word in header.split())


def test_json_and_sheet(run, tmp_path):
    path = write_colours(tmp_path, choices=["red", "yes", "blue"], answers=["red"], metric="letter")
    records = [json.loads(line) for line in path.read_text().splitlines()]
    for record in records:
        record["answer"] = record["answers"][0]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    result = run("-t", path, "-o", tmp_path / "out", "--json", "--sheet", 3, "--limit", 4, "--device", "cpu")
    document = json.loads(result.stdout)
    assert document == json.loads((tmp_path / "out" / "result.json").read_text())
    assert [row["questions"] for row in document["tasks"][0]["kinds"]] == [2, 2, 4]
    three = Image.open(tmp_path / "out" / "sheet.png")
    run("-t", path, "-o", tmp_path / "out", "--sheet", 1, "--limit", 4, "--device", "cpu")
    one = Image.open(tmp_path / "out" / "sheet.png")
    gap = 3 * one.width - three.width  # both have a margin on either side
    assert one.width < three.width < 3 * one.width
    assert gap < one.width


def test_kinds_cannot_command_the_terminal(run, tmp_path):
    path = write_colours(tmp_path)
    path.write_text(path.read_text().replace('"trivial"', '"\\u001b[2Jkind"'))
    told = run("-t", path, "-o", tmp_path / "out", "--limit", 2, "--max-new-tokens", 8, "--device", "cpu").stdout
    assert "\x1b" not in told
    assert "\\x1b[2Jkind" in told


def test_warnings_are_a_line_each(run, monkeypatch):
    def warn(settings, bars):
        warnings.warn("the base has other weights", stacklevel=2)

    monkeypatch.setattr(eval_run, "run_evaluation", warn)
    assert run().stderr.splitlines() == ["Warning: the base has other weights"]


def test_an_adapter_answers_in_words_and_by_likelihood_and_is_another_model(run, tmp_path):
    pytest.importorskip("peft")
    from test_adapters import load_base, save, train

    adapter = save(train(load_base(), 3, size=0.2), tmp_path / "adapter")
    path = write_colours(tmp_path)
    records = [json.loads(line) for line in path.read_text().splitlines()][:3]
    records[1]["choices"] = ["yes", "no"]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    options = ("-t", path, "--max-new-tokens", 8, "--block-length", 8, "--device", "cpu")
    document = json.loads(run("-o", tmp_path / "a", *options, "--adapter", adapter, "--json").stdout)
    plain = json.loads(run("-o", tmp_path / "b", *options, "--json").stdout)
    assert (document["model"]["source"], document["model"]["adapter"]) == (str(BUNDLED_CHECKPOINT), str(adapter))
    assert (plain["model"]["source"], plain["model"]["adapter"]) == ("bundled", None)
    assert document["model"]["fingerprint"] != plain["model"]["fingerprint"]
    answers = [json.loads(line) for line in (tmp_path / "a" / "answers.jsonl").read_text().splitlines()]
    assistant = asking.load(device="cpu", adapter=adapter)
    for number in (0, 2):
        alone = asking.ask(assistant, tmp_path / records[number]["image"], "Which colour is it?", max_new_tokens=8)
        assert answers[number]["given"] == alone.text
    rated = asking.score(assistant, tmp_path / records[1]["image"], "Is it a picture?", ["yes", "no"])
    assert answers[1]["given"] == max(rated, key=lambda item: item.per_token).text
    with pytest.raises(ValueError, match="holds another evaluation: fingerprint was"):
        run("-o", tmp_path / "a", *options)
