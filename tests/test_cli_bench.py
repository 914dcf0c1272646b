"""`lladav bench`: prints a table, writes the file it is told to, and says in a line what is wrong."""

import json

import pytest
import typer
from typer.testing import CliRunner

import transformers_lladav.bench_run as bench_run
from test_bench import TINY
from transformers_lladav.cli_bench import bench

app = typer.Typer()
app.command()(bench)


@pytest.fixture
def command(monkeypatch):
    monkeypatch.setitem(bench_run.SIZES, "small", TINY)
    return lambda *arguments: CliRunner().invoke(app, [*map(str, arguments), "--device", "cpu", "--rounds", "1"])


def test_a_table_and_a_file(command, tmp_path):
    path = tmp_path / "bench.json"
    result = command("--arms", "official, fast", "--output", path)
    assert result.exit_code == 0, result.output
    lines = [line for line in result.stdout.splitlines() if line]
    rows = [line.split()[0] for line in lines[1:] if not line.startswith(" ")]  # others go on with the row above
    assert rows[:2] == ["official", "fast"]
    assert "times as fast" in lines[0]
    assert f"Written to {path}" in result.stdout
    assert [timing["arm"] for timing in json.loads(path.read_text())["timings"]] == ["official", "fast"]


def test_json_is_one_object(command):
    result = command("--arms", "exact", "--json")
    assert json.loads(result.stdout)["rounds"] == 1


def test_an_unknown_arm_is_an_error(command):
    result = command("--arms", "slow")
    assert isinstance(result.exception, ValueError)
    assert "there is no arm 'slow'" in str(result.exception)
