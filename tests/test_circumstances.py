"""What result files say of how they were measured: the command to the letter, and the commit of this repository."""

import shlex
import subprocess
from importlib.metadata import version

from circumstances import ROOT, circumstances


def test_a_result_tells_how_it_came_about(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # which is no repository
    found = circumstances("measure_x.py", ["--output", "my results.json"], ("torch", "peft"), threads=2)
    assert list(found) == ["command", "commit", "machine", "versions"]
    assert shlex.split(found["command"]) == ["python", "model_cards/measure_x.py", "--output", "my results.json"]
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True).stdout.strip()
    assert found["commit"] == head
    assert list(found["machine"]) == ["processor", "system", "device", "threads"]
    assert (found["machine"]["device"], found["machine"]["threads"]) == ("cpu", 2)
    assert found["versions"] == {name: version(name) for name in ("torch", "peft")}
