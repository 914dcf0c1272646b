"""Evaluations: killed or shared they end as if nothing had been, and other weights, data and settings are refused."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from filelock import FileLock

from eval_samples import COLOURS, Knower, write_colours, write_records
from transformers_lladav import BUNDLED_CHECKPOINT, LladaVForMaskedDiffusion, LladaVProcessor, eval_run
from transformers_lladav.eval_asking import Asking
from transformers_lladav.eval_folder import read_answers
from transformers_lladav.eval_metrics import wilson_interval
from transformers_lladav.eval_run import EvalSettings, Processes, fingerprint, measure, run_evaluation
from transformers_lladav.eval_tasks import open_tasks

LINE_KEYS = {
    "task", "number", "blind", "id", "kind", "metric", "question", "expected", "given", "score", "tokens_per_forward",
    "forwards",
}  # fmt: skip


class Killed(Exception):
    """Stands for whatever ends a run."""


@pytest.fixture
def settings(tmp_path):
    """Eight questions, in three batches of at most three; with `blind`, sixteen in six."""
    (tmp_path / "data").mkdir()
    path = write_colours(tmp_path / "data")
    return EvalSettings(tmp_path / "out", (str(path),), device="cpu", how=Asking(batch_size=3), command="lladav eval")


@pytest.fixture
def knower(bundled, settings, monkeypatch):
    """Answers in the place of a model that is loaded."""
    model = Knower(bundled, open_tasks(settings.tasks))
    loaded = SimpleNamespace(model=model, processor=bundled.processor)
    monkeypatch.setattr(eval_run.asking, "load", lambda *arguments: loaded)
    return model


@pytest.fixture
def kill_after(monkeypatch):
    """Ends a run after so many batches."""

    def set_up(batches):
        original = eval_run.ask_batches

        def ask(*arguments):
            for number, given in enumerate(original(*arguments)):
                if number == batches:
                    raise Killed
                yield given

        monkeypatch.setattr(eval_run, "ask_batches", ask)
        return lambda: monkeypatch.setattr(eval_run, "ask_batches", original)

    return set_up


def lines(settings, name="answers.jsonl"):
    return [json.loads(line) for line in (settings.output / name).read_text().splitlines()]


# Results


def test_a_run_leaves_answers_a_table_and_a_result_with_all_that_is_needed_to_repeat_it(settings, knower):
    settings = replace(settings, blind=True)
    outcome = run_evaluation(settings)
    assert {path.name for path in settings.output.iterdir()} == {
        "answers.jsonl", "result.json", "result.md", "settings.json"
    }  # fmt: skip
    written = lines(settings)
    assert all(set(line) == LINE_KEYS for line in written)
    assert [(line["number"], line["blind"]) for line in written] == [
        (number, blind) for number in range(8) for blind in (False, True)
    ]
    document = json.loads((settings.output / "result.json").read_text())
    assert document == outcome.document
    assert not outcome.earlier
    assert (document["command"], document["model"]["source"], document["model"]["dtype"]) == (
        "lladav eval", "bundled", "float32"
    )  # fmt: skip
    assert document["versions"]["torch"] == torch.__version__
    assert (document["machine"]["device"], document["machine"]["processes"]) == ("cpu", 1)
    assert document["settings"]["generation"]["max_new_tokens"] == knower.generation_config.max_new_tokens
    (task,) = document["tasks"]
    assert (task["task"], task["questions"], task["version"]) == (settings.tasks[0], 8, None)
    colour, trivial, everything = task["kinds"]
    assert (colour["kind"], colour["questions"], colour["score"], colour["blind_score"]) == ("colour", 4, 1, 0)
    assert (trivial["kind"], trivial["score"], trivial["blind_score"]) == ("trivial", 1, 1)
    assert (everything["kind"], everything["questions"], everything["blind_score"]) == ("all", 8, 0.5)
    assert tuple(colour["interval"]) == wilson_interval(4, 4)
    assert colour["forwards"] == 4 * 4
    table = (settings.output / "result.md").read_text()
    assert "| colour | exact_match | 4 | 100.0% |" in table
    assert "| 0.0% | 1.50 |" in table


def test_measuring_in_memory_gives_the_rows_of_a_run(settings, knower):
    rows = run_evaluation(replace(settings, blind=True)).rows
    seen = []
    tasks = open_tasks(settings.tasks)
    measured = measure(knower, knower._assistant.processor, tasks, Asking(batch_size=5), blind=True,
                       on_progress=lambda done, total: seen.append((done, total)))  # fmt: skip
    assert measured == rows
    assert seen == [(5, 16), (10, 16), (15, 16), (16, 16)]


def test_progress_is_told_by_task_and_by_answer(settings, knower):
    told = []
    run_evaluation(settings, lambda what: lambda done, total: told.append((what, done, total)))
    reading = [entry for entry in told if entry[0] == f"Reading {settings.tasks[0]}"]
    assert [entry[1:] for entry in reading] == [(number, 8) for number in range(1, 9)]
    assert [entry[1:] for entry in told if entry[0] == "Answering"] == [(0, 8), (3, 8), (6, 8), (8, 8)]


# Going on


@pytest.mark.parametrize("batches", [0, 1, 2])
def test_a_killed_run_goes_on_and_ends_as_if_nothing_had_been(settings, knower, kill_after, batches):
    whole = replace(settings, output=settings.output.with_name("whole"))
    run_evaluation(whole)
    revive = kill_after(batches)
    with pytest.raises(Killed):
        run_evaluation(settings)
    assert len(lines(settings)) == 3 * batches
    assert not (settings.output / "result.json").exists()
    with (settings.output / "answers.jsonl").open("a") as file:
        file.write('{"task": 0, "num')  # the process was killed here
    revive()
    knower.batches.clear()
    # Whether questions are answered together does not matter.
    run_evaluation(replace(settings, how=replace(settings.how, batch_size=8)))
    assert knower.batches == [8 - 3 * batches]
    for name in ("answers.jsonl", "result.json"):
        assert (settings.output / name).read_text() == (whole.output / name).read_text()


def test_answers_that_other_processes_left_count_and_are_merged(settings, knower, kill_after):
    run_evaluation(settings)
    whole = (settings.output / "answers.jsonl").read_text()
    (settings.output / "result.json").unlink()
    written = whole.splitlines(keepends=True)
    (settings.output / "answers.jsonl").write_text(written[7] + written[0])
    (settings.output / "answers.1.jsonl").write_text(written[3] + written[0] + written[4][:20])
    knower.batches.clear()
    run_evaluation(settings)
    assert sum(knower.batches) == 5
    assert (settings.output / "answers.jsonl").read_text() == whole
    assert not (settings.output / "answers.1.jsonl").exists()


def test_a_finished_run_is_not_repeated(settings, knower):
    first = run_evaluation(settings)
    knower.batches.clear()
    again = run_evaluation(replace(settings, command="lladav eval again"))
    assert knower.batches == []
    assert again.earlier
    assert (again.document, again.answers, again.rows) == (first.document, first.answers, first.rows)


def changed_settings(settings):
    other = settings.output.parent / "other.jsonl"
    write_records(other, [{"question": "Which?", "answer": "x"}])
    return {
        "tasks": replace(settings, tasks=(str(other),)),
        "limit": replace(settings, limit=7),
        "metric": replace(settings, metric="anls"),
        "blind": replace(settings, blind=True),
        "preset": replace(settings, how=Asking(preset="fast")),
        "generation": replace(settings, how=Asking({"max_new_tokens": 8})),
        "seed": replace(settings, how=Asking(seed=1)),
        "samples": replace(settings, how=Asking(samples=1)),
        "ignored": replace(settings, how=Asking(ignored=eval_run.Asking().ignored.named(["case"]))),
    }


@pytest.mark.parametrize(
    ("change", "difference"),
    [
        ("tasks", r"was \{.*\"questions\": 8.* and is null"),
        ("limit", r"\.questions was 8 and is 7"),
        ("metric", r"settings\.metric was null and is \"anls\""),
        ("blind", "settings.blind was false and is true"),
        ("preset", r"settings\.preset was null and is \"fast\""),
        ("generation", r"settings\.generation\.max_new_tokens was \d+ and is 8"),
        ("seed", "settings.seed was 0 and is 1"),
        ("samples", "settings.samples was 128 and is 1"),
        ("ignored", "settings.ignored.case was false and is true"),
    ],
)
def test_another_command_on_the_same_folder_is_refused(settings, knower, change, difference):
    run_evaluation(settings)
    before = {path.name: path.read_bytes() for path in settings.output.iterdir()}
    with pytest.raises(ValueError, match=rf"holds another evaluation: .*{difference}.*choose another --output folder"):
        run_evaluation(changed_settings(settings)[change])
    assert {path.name: path.read_bytes() for path in settings.output.iterdir()} == before


def test_other_weights_and_other_data_of_the_same_name_are_refused(settings, knower, monkeypatch):
    run_evaluation(settings)
    path = Path(settings.tasks[0])
    records = path.read_text()
    path.write_text(records.replace('"yes"', '"no"', 1))
    with pytest.raises(ValueError, match=r"digest was \"\w+\" and is \"\w+\""):
        run_evaluation(settings)
    path.write_text(records)
    assert run_evaluation(settings).earlier
    weights = {name: tensor.clone() for name, tensor in knower.state_dict().items()}
    weights["lm_head.weight"] += 1
    knower.state_dict = lambda: weights
    with pytest.raises(ValueError, match="holds another evaluation: fingerprint was"):
        run_evaluation(settings)


def test_a_folder_with_other_things_is_refused(settings, knower):
    settings.output.mkdir()
    (settings.output / "thesis.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="holds other files and no evaluation; choose another --output folder"):
        run_evaluation(settings)
    assert [path.name for path in settings.output.iterdir()] == ["thesis.txt"]


def test_two_runs_do_not_share_a_folder_at_a_time(settings, knower):
    settings.output.mkdir()
    with FileLock(settings.output / ".in_use"), pytest.raises(ValueError, match="another evaluation writes to"):
        run_evaluation(settings)
    assert knower.batches == []
    assert run_evaluation(settings) is not None


def test_a_run_that_began_and_ended_while_another_loaded_its_model_is_no_part_of_it(settings, knower, monkeypatch):
    check, other = eval_run.check_folder, replace(settings, how=replace(settings.how, seed=5))

    def slow(folder, record):
        check(folder, record)
        monkeypatch.setattr(eval_run, "check_folder", check)
        run_evaluation(other)

    monkeypatch.setattr(eval_run, "check_folder", slow)
    with pytest.raises(ValueError, match=r"holds another evaluation: settings\.seed was 5 and is 0"):
        run_evaluation(settings)


@pytest.mark.parametrize("left", [".settings.json.part", ".in_use"])
def test_a_run_killed_before_it_wrote_its_settings_begins_again(settings, knower, left):
    settings.output.mkdir()
    (settings.output / left).write_text("{")
    assert not run_evaluation(settings).earlier


def test_settings_that_somebody_damaged_are_named(settings, knower):
    run_evaluation(settings)
    (settings.output / "settings.json").write_text("{half")
    with pytest.raises(ValueError, match=r"settings\.json cannot be read .*; choose another output, or remove"):
        run_evaluation(settings)


def test_a_line_that_is_no_answer_is_named(settings, knower):
    run_evaluation(settings)
    (settings.output / "result.json").unlink()
    path = settings.output / "answers.jsonl"
    written = path.read_text().splitlines(keepends=True)
    for broken in ("nonsense\n", '{"task": 0}\n'):
        path.write_text("".join([written[0], broken, *written[2:]]))
        with pytest.raises(ValueError, match=r"answers\.jsonl:2 is no answer .*remove the line, and its question"):
            run_evaluation(settings)


def test_answers_that_went_missing_are_noticed(settings, knower):
    run_evaluation(settings)
    path = settings.output / "answers.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[1:]))
    with pytest.raises(ValueError, match=r"holds 7 of 8 answers; .*remove result\.json .* and repeat the command"):
        run_evaluation(settings)


def test_answers_with_any_character_survive_the_file(settings, knower):
    said = "a\u2028b\u0085c\r\n'd' \U0001f600"
    knower.answer_to = lambda key: "x"
    original = eval_run.ask_batches

    def ask(*arguments):
        for given in original(*arguments):
            yield [replace(answer, given=said) for answer in given]

    eval_run.ask_batches = ask
    try:
        run_evaluation(settings)
    finally:
        eval_run.ask_batches = original
    assert [answer.given for answer in read_answers(settings.output)] == [said] * 8


# What tells models apart


def test_a_fingerprint_tells_trained_weights_and_other_preparation_apart_and_not_the_type_they_are_held_in():
    def load(dtype=torch.bfloat16):
        return LladaVForMaskedDiffusion.from_pretrained(BUNDLED_CHECKPOINT, dtype=dtype)

    processor = LladaVProcessor.from_pretrained(BUNDLED_CHECKPOINT)
    model = load()
    first = fingerprint(model, processor)
    assert fingerprint(load(), processor) == first
    assert fingerprint(model.float(), processor) == first
    for name, parameter in list(model.named_parameters())[::20]:
        with torch.no_grad():
            parameter += 1
            assert fingerprint(model, processor) != first, name
            parameter -= 1
    processor.image_processor.image_mean = [0.4, 0.5, 0.5]
    assert fingerprint(load(), processor) != first


def test_a_model_that_is_not_there_is_refused_before_anything_is_read(settings, monkeypatch):
    monkeypatch.setattr(eval_run.asking, "load", lambda *arguments: pytest.fail("nothing is to be loaded"))
    for option in ("model", "adapter"):
        with pytest.raises(FileNotFoundError, match="no such folder is neither a folder nor a Hub id such as"):
            run_evaluation(replace(settings, **{option: "no such folder"}))
    assert not settings.output.exists()


# Several processes


def test_each_process_has_a_device_of_its_own(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert Processes().device("cuda:1") == "cuda:1"
    monkeypatch.setenv("WORLD_SIZE", "3")
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("LOCAL_RANK", "1")
    processes = Processes()
    assert (processes.rank, processes.count) == (1, 3)
    assert (processes.device("auto"), processes.device("cpu")) == ("cuda:1", "cpu")
    with pytest.raises(ValueError, match="device='cuda:0' with 3 processes; leave it out"):
        processes.device("cuda:0")
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(ValueError, match="process 2 has no GPU, because there are 2; launch 2 processes"):
        Processes().device("auto")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert Processes().device("auto") == "auto"


SCRIPT = """
import json, os, sys
from pathlib import Path
from transformers_lladav import eval_run
from transformers_lladav.eval_asking import Asking

folder = Path(sys.argv[1])
task = json.loads((folder / "task.json").read_text())
asked, original = [], eval_run.ask_batches

def ask(*arguments):
    for given in original(*arguments):
        asked.extend([answer.number, answer.blind] for answer in given)
        yield given

eval_run.ask_batches = ask
settings = eval_run.EvalSettings(
    Path(task["output"]), tuple(task["tasks"]), device="cpu", blind=True, how=Asking(batch_size=3)
)
outcome = eval_run.run_evaluation(settings)
assert (outcome is None) == (os.environ["RANK"] == "1")
(folder / f"asked-{os.environ['RANK']}.json").write_text(json.dumps(asked))
"""


def test_two_processes_go_on_with_what_one_began_and_end_with_what_one_would(
    settings, bundled, kill_after, monkeypatch, tmp_path
):  # fmt: skip
    from test_distributed import run

    settings = replace(settings, blind=True)
    whole = replace(settings, output=tmp_path / "whole")
    monkeypatch.setattr(eval_run.asking, "load", lambda *arguments: bundled)
    alone = run_evaluation(whole)
    revive = kill_after(1)
    with pytest.raises(Killed):
        run_evaluation(settings)
    begun = [[answer.number, answer.blind] for answer in read_answers(settings.output)]
    revive()
    folder, script = tmp_path / "launched", tmp_path / "script.py"
    folder.mkdir()
    script.write_text(SCRIPT)
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", str(script)]
    run(launcher, folder, {"output": str(settings.output), "tasks": settings.tasks})
    first, second = (json.loads((folder / f"asked-{rank}.json").read_text()) for rank in (0, 1))
    # Five batches were left, of three and one of one: the first process took three of them.
    assert (len(begun), len(first) + len(second), len(second)) == (3, 13, 6)
    everything = [[number, blind] for number in range(8) for blind in (False, True)]
    assert sorted(begun + first + second) == everything
    assert (settings.output / "answers.jsonl").read_text() == (whole.output / "answers.jsonl").read_text()
    document = json.loads((settings.output / "result.json").read_text())
    assert document["machine"]["processes"] == 2
    assert document["tasks"] == alone.document["tasks"]
    assert not list(settings.output.glob("answers.*.jsonl"))
    assert len(COLOURS) == 4
