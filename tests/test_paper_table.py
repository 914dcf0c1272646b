"""The paper's benchmarks: what would be run, what is read of lmms-eval's results, and a run by two processes."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from lmms_tasks import KWARGS, RATED, SETTINGS, write_docs, write_task
from transformers_lladav import BUNDLED_CHECKPOINT, asking
from transformers_lladav.cli import app

pytest.importorskip("lmms_eval", reason="lmms-eval is not installed: make test installs it without its requirements")
from transformers_lladav import paper_table
from transformers_lladav.paper_table import BENCHMARKS, Benchmark, PaperTable, find_benchmarks, plan, read_score, run

SCORES = json.loads((Path(__file__).parent.parent / "model_cards" / "paper" / "scores.json").read_text())["scores"]
LOCAL = Benchmark("scenes", "scenes", ("scenes",), "right", note="of the suite")


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tasks")
    chats, answers = write_docs(folder, 7)
    write_task(folder, "scenes", RATED + KWARGS)
    return folder, chats, answers


def test_every_score_of_the_paper_has_its_benchmark():
    assert [(score["id"], score.get("config")) for score in SCORES] == [(one.id, one.config) for one in BENCHMARKS]
    assert {one.name: one.paper_score() for one in BENCHMARKS}["mmmu_pro_vision"] == 18.6


def test_benchmarks_are_chosen_by_name():
    assert [one.name for one in find_benchmarks(["mmstar", "mmmu"])] == ["mmmu", "mmstar"]
    assert find_benchmarks([]) == BENCHMARKS
    with pytest.raises(ValueError, match=r"^--tasks mmu is not a benchmark of the paper; choose some of mmmu, mm"):
        find_benchmarks(["mmu"])


def test_a_dry_run_finds_every_task_and_writes_nothing(tmp_path):
    options = ["--output", str(tmp_path / "out"), "--num-processes", "2", "--batch-size", "8", "--limit", "3"]
    ended = CliRunner().invoke(app, ["paper-table", "--model", str(BUNDLED_CHECKPOINT), "--dry-run", *options])
    assert ended.exit_code == 0, ended.output
    assert "lmms-eval has no task" not in ended.stdout
    assert "has no metric" not in ended.stdout
    lines = ended.stdout.splitlines()
    states = {line.split(": ")[0]: line.split(": ", 1)[1] for line in lines if not line.startswith(" ")}
    assert set(states) == {one.name for one in BENCHMARKS}
    assert states["mmmu"] == states["docvqa"] == "would be run"
    start = lines.index("docvqa: would be run")
    assert lines[start + 1] == (
        "  the paper's settings for docvqa: max_new_tokens=32, block_length=32, max_denoising_steps=16, /no_think "
        "after the question; anls"
    )
    assert lines[start + 2].endswith(
        "-m torch.distributed.run --standalone --nproc_per_node=2 -m lmms_eval --model lladav --model_args "
        f"pretrained={BUNDLED_CHECKPOINT} --tasks docvqa_val --batch_size 8 --limit 3 --output_path "
        f"{tmp_path / 'out' / 'docvqa'} --log_samples"
    )
    assert not (tmp_path / "out").exists()


def test_two_processes_give_the_score_that_is_counted_by_hand(scenes, tmp_path, monkeypatch):
    folder, chats, expected = scenes
    assistant = asking.load(device="cpu")
    alone = [asking.answer(assistant, chat, max_denoising_steps=None, **SETTINGS).text for chat in chats]
    right = sum(answer == wanted for answer, wanted in zip(alone, expected, strict=True))
    assert len(chats) % 2 == 1  # one process has a question more
    assert 0 < right < len(chats)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    table = PaperTable(str(BUNDLED_CHECKPOINT), tmp_path / "out", (LOCAL,), 2, 4, None, "cpu", folder)
    heard = []
    (row,) = run(table, heard.append)
    assert row.problem == "", (tmp_path / "out" / "scenes.log").read_text()
    assert row.measured == pytest.approx(100 * right / len(chats))
    assert row.questions == len(chats)
    (samples,) = (tmp_path / "out" / "scenes").rglob("*_samples_scenes.jsonl")
    rows = sorted(map(json.loads, samples.read_text().splitlines()), key=lambda sample: sample["doc_id"])
    assert [sample["filtered_resps"] for sample in rows] == alone
    assert heard[0].startswith("scenes: the task's own settings: max_new_tokens=20, stop_strings=['\\n']; see ")

    monkeypatch.setattr(paper_table.subprocess, "run", None)  # whatever is there is not run again
    assert run(table, heard.append) == [replace(row, earlier=True)]
    assert heard[-1] == "scenes: the result is there"
    document = json.loads((tmp_path / "out" / "table.json").read_text())
    assert document["rows"][0]["measured"] == row.measured
    assert document["rows"][0]["reported_by_the_paper"] is None
    markdown = (tmp_path / "out" / "table.md").read_text().splitlines()
    assert markdown[-1] == (
        f"| scenes | scenes | 20 / None / None |  | {len(chats)} | {100 * right / len(chats):.1f} |  | of the suite |"
    )
    with pytest.raises(ValueError, match=r"was made with other settings: limit was null and is 5\. Choose another"):
        plan(replace(table, limit=5))


def test_a_benchmark_that_fails_is_named_and_leaves_its_log(scenes, tmp_path, monkeypatch):
    """lmms-eval ends with 0 when it fails."""
    folder, _, _ = scenes
    monkeypatch.setattr(PaperTable, "command", lambda self, benchmark, out: [sys.executable, "-c", "print('Oh')"])
    table = PaperTable(str(BUNDLED_CHECKPOINT), tmp_path, (LOCAL,), include_path=folder, limit=2)
    (row,) = run(table, [].append)
    log = tmp_path / "scenes.log"
    assert row.problem == f"lmms-eval ended without a result (exit code 0); see {log}"
    assert log.read_text().endswith("Oh\n")
    assert row.measured is None
    assert sorted(path.name for path in tmp_path.iterdir()) == ["scenes.log", "table.json", "table.md"]
    text = (tmp_path / "table.md").read_text()
    assert "**Only the first 2 questions of each task**: these figures compare with none." in text
    assert f"| not run: {row.problem} |" in text


@pytest.mark.parametrize("results", [{"scenes": {"right,none": "N/A"}}, {}], ids=["no number", "no task"])
def test_a_benchmark_without_a_score_does_not_stop_the_others(scenes, tmp_path, monkeypatch, results):
    folder, _, _ = scenes
    second = replace(LOCAL, name="second")
    whole = {"results": {"scenes": {"right,none": 0.5}}, "n-samples": {"scenes": {"effective": 2}}}

    def write(self, benchmark, out):
        document = whole if benchmark.name == "second" else {**whole, "results": results}
        code = "import pathlib, sys; pathlib.Path(sys.argv[1], 'x_results.json').write_text(sys.argv[2])"
        return [sys.executable, "-c", code, str(out), json.dumps(document)]

    monkeypatch.setattr(PaperTable, "command", write)
    rows = run(PaperTable(str(BUNDLED_CHECKPOINT), tmp_path, (LOCAL, second), include_path=folder), [].append)
    assert rows[0].problem.startswith("the results of scenes have no 'right' that is a number, but ")
    assert rows[0].problem.endswith(f"; see {tmp_path / 'scenes.log'}")
    assert rows[1].measured == 50
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_dir()) == ["second"]


def test_what_cannot_run_is_said_beforehand(scenes, tmp_path, monkeypatch):
    folder, _, _ = scenes
    monkeypatch.delenv("KEY_OF_A_JUDGE", raising=False)
    wrong = replace(LOCAL, tasks=("scenes", "scents"), metric="wrong", variables=("KEY_OF_A_JUDGE",))
    (row,) = plan(PaperTable(str(BUNDLED_CHECKPOINT), tmp_path, (wrong,), include_path=folder))
    assert row.problem == (
        "lmms-eval has no task 'scents'; the task 'scenes' of this lmms-eval has no metric 'wrong'; set "
        "KEY_OF_A_JUDGE for the judge"
    )
    with pytest.raises(FileNotFoundError, match=r"^nowhere is neither a folder nor a Hub id"):
        plan(PaperTable("nowhere", tmp_path))
    parted = tmp_path / "a,b"
    parted.mkdir()
    with pytest.raises(ValueError, match="holds a comma or an equals sign"):
        plan(PaperTable(str(parted), tmp_path))


def test_a_score_is_the_mean_over_all_questions():
    both = replace(LOCAL, tasks=("one", "two"))
    document = {
        "results": {"one": {"right,none": 0.5, "right_stderr,none": 9.0}, "two": {"right,none": 0.2}},
        "n-samples": {"one": {"effective": 10}, "two": {"effective": 30}},
    }
    score, questions = read_score(both, document)
    assert (score, questions) == (pytest.approx(100 * (5 + 6) / 40), 40)
    assert read_score(replace(both, share=False), document)[0] == pytest.approx(11 / 40)
    told = r"^the results of one have no 'wrong' that is a number, but right,none=0\.5, right_stderr,none=9\.0$"
    with pytest.raises(ValueError, match=told):
        read_score(replace(both, metric="wrong"), document)
