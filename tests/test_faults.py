"""Commands killed, torn or out of room at a writing step leave the whole result or none, and end well when repeated.

A few faults are tried here, all of them by `pytest -m slow`; see tests/faults/run.py for the rule.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
RESULT = json.loads((ROOT / "model_cards" / "results" / "faults.json").read_text())


def try_faults(output, *options):
    command = [sys.executable, str(ROOT / "tests" / "faults" / "run.py"), "--output", str(output), *options]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=7200, env={**os.environ})
    assert output.exists(), ended.stderr[-3000:]
    return json.loads(output.read_text())


def test_the_committed_table_has_no_problem():
    assert RESULT["problems"] == []
    assert all(row["held"] == row["tried"] > 0 for row in RESULT["tried"])
    assert {row["command"] for row in RESULT["tried"]} == {"convert", "batch", "eval", "train", "serve"}
    for command in ("convert", "batch", "eval", "train"):
        faults = {row["fault"] for row in RESULT["tried"] if row["command"] == command}
        assert faults >= {"kill", "term", "torn", "full", "gone", "two at once", "a disk that can only be read"}


@pytest.mark.skipif(sys.platform != "linux", reason="forks, and reads where open files are from /proc")
def test_a_few_faults_leave_nothing_half_done(tmp_path):
    table = try_faults(
        tmp_path / "faults.json",
        "--commands",
        "convert,batch",
        "--faults",
        "kill,torn,full",
        "--every",
        "13",
        "--no-disks",
    )
    assert table["problems"] == []
    assert {(row["command"], row["fault"]) for row in table["tried"]} == {
        (command, fault) for command in ("convert", "batch") for fault in ("kill", "torn", "full")
    }


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="forks, and reads where open files are from /proc")
def test_every_fault_at_every_step_leaves_nothing_half_done(tmp_path):
    assert try_faults(tmp_path / "faults.json")["problems"] == []
