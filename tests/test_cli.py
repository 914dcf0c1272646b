"""`lladav`: every command says what it takes, does it, and ends bad input with one line and exit code 2."""

import io
import json

import pytest
import torch
import typer
from PIL import Image
from torch.distributed.run import get_args_parser

import python_process
from test_adapters import load_base, save, train
from transformers_lladav import BUNDLED_CHECKPOINT, LladaVProcessor, asking, cli
from transformers_lladav.demo import DemoRow
from transformers_lladav.shape_scenes import NUMBER_WORDS, make_scene, render_scene


def lladav(*arguments, timeout=180):
    return python_process.run(["-m", "transformers_lladav", *arguments], timeout=timeout)


@pytest.fixture(scope="module")
def picture(tmp_path_factory):
    path = tmp_path_factory.mktemp("pictures") / "scene.png"
    render_scene(make_scene("demo", 0), 200).save(path)
    return path


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--help"], ["ask", "chat", "score", "presets", "demo", "eval", "train", "merge", "push", "data"]),
        (
            ["ask", "--help"],
            ["PICTURE", "QUESTION", "--model", "--json", "--block-length", "--watch", "--gif", "--html", "--choices"],
        ),
        (["chat", "--help"], ["PICTURE", "--model", "--adapter", "--preset"]),
        (["eval", "--help"], ["--tasks", "--limit", "--blind", "--output"]),
        (["train", "tiny", "--help"], ["--runs", "--all-stages", "--output", "--compile"]),
        (["train", "--help"], ["lora", "qlora", "full", "projector", "stage1", "stage3b", "tiny", "configs"]),
        (["merge", "--help"], ["ADAPTER", "OUTPUT", "--model", "--dtype"]),
        (
            ["push", "--help"],
            ["DIR", "REPO", "--private", "--dry-run", "--revision", "--message", "--create-pr", "--base-model"],
        ),
    ],
)
def test_help_names_what_there_is(arguments, words):
    run = lladav(*arguments)
    assert run.returncode == 0
    assert all(word in run.stdout for word in words)


SEVERAL_PROCESSES = [["train"], ["eval"], ["batch"]]  # commands that torchrun starts, with those below them


def options_of(command):
    """The options of a command and of all below it."""
    below = getattr(command, "commands", {}).values()
    own = {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}
    return own.union(*map(options_of, below))


@pytest.mark.parametrize("path", SEVERAL_PROCESSES)
def test_torchrun_passes_every_option_on(path):
    """It takes what begins like several of its own options for one of them, wherever it stands."""
    command = typer.main.get_command(cli.app)
    for name in path:
        command = command.commands[name]
    options = sorted(name for name in options_of(command) if name.startswith("-"))
    assert {"train": "--all-stages", "eval": "--blind", "batch": "--skip-bad"}[path[-1]] in options
    for option in options:
        rest = [*path, option, "value"]
        assert get_args_parser().parse_args(["-m", "transformers_lladav", *rest]).training_script_args == rest


def test_ask_prints_the_answer_and_its_cost(picture):
    run = lladav("ask", picture, "How many shapes are there?")
    assert run.returncode == 0, run.stderr
    first, second = run.stdout.strip().splitlines()
    assert first in NUMBER_WORDS
    assert "tokens per forward" in second


def test_ask_json_is_one_object(picture):
    run = lladav("ask", picture, "How many shapes are there?", "--json")
    record = json.loads(run.stdout)
    assert record["text"] in NUMBER_WORDS
    assert record["question"] == "How many shapes are there?"
    assert (record["model"], record["adapter"]) == ("bundled", None)
    assert set(record) == {
        "picture", "question", "model", "adapter", "text", "tokens", "denoising_steps", "tokens_per_forward",
        "stopped", "finish_reason",
    }  # fmt: skip


class Run:
    """What a command printed and how it ended."""

    def __init__(self, returncode, stdout, stderr):
        self.returncode, self.stdout, self.stderr = returncode, stdout, stderr


@pytest.fixture
def here(monkeypatch, capsys):
    """Runs a command in this process, which spares the start."""

    def run(*arguments, typed=""):
        monkeypatch.setattr("sys.argv", ["lladav", *map(str, arguments)])
        monkeypatch.setattr("sys.stdin", io.StringIO(typed))
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return Run(ended.value.code or 0, *capsys.readouterr())

    return run


def test_watch_prints_every_step_where_there_is_no_terminal(here, picture):
    run = here("ask", picture, "How many shapes are there?", "--watch", "--block-length", 8, "--max-new-tokens", 8)
    *drafts, last, figures = run.stdout.splitlines()
    assert len(drafts) == int(figures.split()[0])
    assert drafts[-1] == last in NUMBER_WORDS
    assert "░░" in drafts[0]


def test_an_answer_cannot_command_the_terminal(here, picture, monkeypatch):
    said = asking.Answer("\x1b[2J\x9bred\u202e", 1, 2, 1.0, True, "stop")
    monkeypatch.setattr(asking, "ask", lambda *_, **__: said)
    assert here("ask", picture, "What?").stdout.splitlines()[0] == "[2Jred"
    assert json.loads(here("ask", picture, "What?", "--json").stdout)["text"] == said.text
    monkeypatch.setattr("transformers_lladav.chatting.answer", lambda *_, **__: said)
    assert here("chat", picture, typed="What?").stdout == "[2Jred\n"


def test_gif_and_page_are_saved(here, picture, tmp_path):
    files = tmp_path / "new" / "a.gif", tmp_path / "a.html"
    run = here("ask", picture, "Describe the picture.", "--threshold", 0.9, "--gif", files[0], "--html", files[1])
    assert run.returncode == 0
    assert Image.open(files[0]).format == "GIF"
    assert run.stdout.splitlines()[0].split()[0] in files[1].read_text()
    saved = "".join(run.stderr.split())
    assert all(f"Saved{path}" in saved for path in files)


def test_choices_holes_and_scores(here, picture):
    assert here("ask", picture, "Which shape?", "--choices", "moon, star,").stdout.splitlines()[0] in ("moon", "star")
    run = here("ask", picture, "Describe the picture.", "--fill", "a [MASK:1] star", "--json")
    record = json.loads(run.stdout)
    assert (record["tokens"], record["finish_reason"]) == (1, "filled")
    assert record["text"].startswith("a ")
    assert record["text"].endswith(" star")
    words = [option for word in NUMBER_WORDS for option in ("--answer", word)]
    rated = json.loads(here("score", picture, "How many shapes are there?", *words, "--json").stdout)
    answer = here("ask", picture, "How many shapes are there?").stdout.splitlines()[0]
    assert rated[0]["text"] == answer
    assert [item["text"] in here("score", picture, "How many?", *words).stdout for item in rated] == [True] * len(
        NUMBER_WORDS
    )


def test_presets_are_listed(here):
    listed = json.loads(here("presets", "--json").stdout)
    lengths = {"max_new_tokens": 32, "block_length": 32, "max_denoising_steps": 16}
    assert listed["docvqa"]["settings"].items() >= lengths.items()
    assert listed["docvqa"]["tag"] == "/no_think"
    shown = here("presets").stdout
    assert all(name in shown for name in listed)


def test_a_preset_and_sampling_options_reach_the_loop(here, picture):
    run = here("ask", picture, "How many shapes are there?", "--preset", "mmmu", "--json")
    assert json.loads(run.stdout)["denoising_steps"] <= 2
    sampled = [
        here(
            "ask", picture, "Describe the picture.", "--temperature", 8, "--top-k", 20, "--seed", seed, "--json"
        ).stdout
        for seed in (1, 1, 2)
    ]
    assert sampled[0] == sampled[1] != sampled[2]


def test_chat_answers_line_by_line_and_survives_mistakes(here, picture, tmp_path):
    typed = f"How many shapes are there?\n/nope\n\n/save {tmp_path / 'talk.json'}\n/undo\n/help\n/quit\nnever read\n"
    run = here("chat", picture, typed=typed)
    assert run.returncode == 0
    assert run.stdout.strip() in NUMBER_WORDS
    assert "/nope is not a command" in run.stderr
    assert "Taken back." in run.stderr
    saved = json.loads((tmp_path / "talk.json").read_text())["messages"]
    assert saved[0]["content"][0] == {"type": "image", "image": str(picture)}
    assert here("chat", picture, typed="How many shapes are there?").stdout.strip() in NUMBER_WORDS


def test_a_chat_survives_what_is_not_installed(here, picture, monkeypatch):
    def missing(*_):
        raise ImportError("adapters need peft: pip install 'transformers_lladav[train]'")

    monkeypatch.setattr("transformers_lladav.chatting.switch_adapter", missing)
    run = here("chat", picture, typed="/adapter x\nHow many shapes are there?\n")
    assert "adapters need peft" in run.stderr
    assert run.stdout.strip() in NUMBER_WORDS


@pytest.fixture(scope="module")
def adapter(tmp_path_factory):
    torch.manual_seed(0)  # adapters begin with weights that are drawn
    return save(train(load_base(), 3, size=0.2), tmp_path_factory.mktemp("runs") / "adapter")


def test_an_adapter_answers_rates_and_chats(here, picture, adapter):
    question, length = "Describe the picture.", 8
    expected = asking.ask(asking.load(device="cpu", adapter=adapter), picture, question, max_new_tokens=length)
    options = ("--adapter", adapter, "--max-new-tokens", length, "--device", "cpu")
    run = here("ask", picture, question, *options, "--json")
    record = json.loads(run.stdout)
    assert (record["text"], record["model"], record["adapter"]) == (
        expected.text, str(BUNDLED_CHECKPOINT), str(adapter)
    )  # fmt: skip
    assert "Warning" not in run.stderr
    rated, plain = (
        json.loads(here("score", picture, question, "--answer", "red", *chosen, "--json").stdout)[0]["log_likelihood"]
        for chosen in (("--adapter", adapter), ())
    )
    assert abs(rated - plain) > 0.1
    without = here("chat", picture, *options[2:], typed=question).stdout.strip()
    assert without != expected.text
    typed = f"{question}\n/undo\n/adapter off\n{question}"
    assert here("chat", picture, *options, typed=typed).stdout.splitlines() == [
        *expected.text.splitlines(), without,
    ]  # fmt: skip


def test_an_adapter_on_another_base_is_told_in_a_line(here, picture, adapter, tmp_path):
    model = load_base()
    with torch.no_grad():
        model.lm_head.weight.mul_(1.1)
    model.save_pretrained(tmp_path, save_original_format=False)
    LladaVProcessor.from_pretrained(BUNDLED_CHECKPOINT).save_pretrained(tmp_path)
    options = ("--adapter", adapter, "--model", tmp_path, "--max-new-tokens", 8, "--json")
    run = here("ask", picture, "What?", *options)
    assert run.returncode == 0
    assert "Warning: the adapter" in " ".join(run.stderr.split())
    assert "other weights in: head; its answers may be worse" in " ".join(run.stderr.split())
    assert json.loads(run.stdout)["model"] == str(tmp_path)
    run = here("ask", picture, "What?", "--adapter", tmp_path)
    assert run.returncode == 2
    assert "adapter_config.json is missing" in " ".join(run.stderr.split())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--choices", " , "], "--choices ' , ' names no answer; give some with commas between"),
        (["--choices", "a", "--fill", "[MASK:1]"], "--choices and --fill were both given"),
        (["--choices", "a", "--max-new-tokens", "8"], "max_new_tokens=8 has no meaning with choices"),
        (["--watch", "--json"], "--watch and --json were both given"),
        (["--gif", "a.png"], "a.png does not end in .gif"),
        (["--html", "a.txt"], "a.txt does not end in .html or .htm"),
        (["--preset", "docvq"], "preset='docvq' is not known; choose one of docvqa"),
        (["--threshold", "1.5"], "threshold=1.5 must be a number from 0 to 1"),
        (["--threshold", "0.5", "--factor", "1"], "threshold and factor are different rules"),
        (["--top-p", "0.5"], "top_p=0.5 needs temperature > 0"),
        (["--fill", "no hole"], "no hole"),
    ],
)
def test_options_that_do_not_go_together_are_refused(arguments, message, here, picture):
    run = here("ask", picture, "What?", *arguments)
    assert run.returncode == 2
    assert message in " ".join(run.stderr.split())


def test_a_wrong_path_is_found_before_the_model_is_loaded(here, monkeypatch):
    monkeypatch.setattr("transformers_lladav.asking.load", lambda *_: pytest.fail("the model was loaded"))
    for command in (
        ["ask", "gone.png", "What?"],
        ["chat", "gone.png"],
        ["score", "gone.png", "What?", "--answer", "a"],
    ):
        run = here(*command)
        assert run.returncode == 2
        assert "there is no such file" in " ".join(run.stderr.split())


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
        (["eval", "--tasks", "suite:tset", "--output", tmp_path / "r"], "the suite has no split 'tset'"),
    ]
    for arguments, message in cases:
        run = lladav(*arguments)
        assert run.returncode == 2, arguments
        assert "Traceback" not in run.stderr
        assert message in " ".join(run.stderr.split())


def test_demo_names_its_files_as_they_are_called(here, tmp_path):
    """Square brackets are no markup."""
    run = here("demo", "--scene", 3, "--output", tmp_path / "[v1]out[/v1]")
    assert run.returncode == 0, run.stderr
    shown = "".join(run.stdout.split())
    assert all(f"[v1]out[/v1]/{name}" in shown for name in ("scene-3.png", "scene-3-answers.png"))


def test_demo_shows_no_words_that_a_terminal_would_act_on(here, tmp_path, monkeypatch):
    row = DemoRow("What?", "a", "\x1b[2Jgone\u202e", 1.0)
    monkeypatch.setattr("transformers_lladav.demo.run_demo", lambda *_: (make_scene("demo", 3), [row]))
    run = here("demo", "--scene", 3, "--output", tmp_path)
    assert run.returncode == 0, run.stderr
    assert "[2Jgone" in run.stdout
    assert "\x1b" not in run.stdout
    assert "\u202e" not in run.stdout


def test_demo_writes_picture_and_card(tmp_path):
    run = lladav("demo", "--scene", 3, "--output", tmp_path / "out")
    assert run.returncode == 0, run.stderr
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["scene-3-answers.png", "scene-3.png"]
    assert "of 4 right" in run.stdout
    assert Image.open(tmp_path / "out" / "scene-3.png").size == (512, 512)


def test_eval_writes_results_and_answers(tmp_path):
    run = lladav("eval", "--tasks", "suite:validation/count,ocr", "--limit", 4, "--output", tmp_path / "out")
    assert run.returncode == 0, run.stderr
    document = json.loads((tmp_path / "out" / "result.json").read_text())
    (task,) = document["tasks"]
    assert [(row["kind"], row["questions"]) for row in task["kinds"]] == [("count", 2), ("ocr", 2), ("all", 4)]
    assert len((tmp_path / "out" / "answers.jsonl").read_text().splitlines()) == 4
