"""Broken checkpoints and full or read-only disks get one screen of reasons, and leave no folder that looks whole."""

import shutil
from pathlib import Path

import pytest

import command_line
import convert_checkpoint
import parity
import python_process
import verify_checkpoint
from corruptions import CORRUPTIONS

SCREEN = 40
SIGLIP = parity.FOLDER / "checkpoint-siglip" / "config.json"
SCRIPT = Path(convert_checkpoint.__file__)


@pytest.fixture
def source(tmp_path):
    """A copy of the official folder to break."""
    return Path(shutil.copytree(parity.OFFICIAL, tmp_path / "in" / "official"))


@pytest.fixture
def shelf(tmp_path):
    """Where outputs go; something stands there already."""
    (tmp_path / "shelf").mkdir()
    (tmp_path / "shelf" / "precious").write_text("mine")
    return tmp_path / "shelf"


def unchanged(shelf):
    return [path.name for path in shelf.iterdir()] == ["precious"] and (shelf / "precious").read_text() == "mine"


def arguments(source, output):
    return ["--source", str(source), "--output", str(output), "--vision-config", str(SIGLIP)]


@pytest.mark.parametrize("corruption", CORRUPTIONS, ids=lambda corruption: corruption.name)
def test_the_converter_refuses(corruption, source, shelf, capsys):
    corruption.breaks(source)
    assert command_line.run(convert_checkpoint.main, arguments(source, shelf / "out")) == 1
    message = capsys.readouterr().err.split("error:", 1)[1]
    assert corruption.message in message
    assert "nothing was written" in message
    assert message.count("\n") <= SCREEN
    assert unchanged(shelf)


@pytest.mark.parametrize("corruption", CORRUPTIONS, ids=lambda corruption: corruption.name)
def test_the_verifier_reports(corruption, source, capsys):
    corruption.breaks(source)
    assert verify_checkpoint.main([str(source), "--vision-config", str(SIGLIP)]) == 1
    shown = capsys.readouterr().out
    assert corruption.message in shown
    assert "ERROR" in shown
    assert shown.count("\n") <= SCREEN


def test_the_uncorrupted_folder_passes(source, capsys):
    assert verify_checkpoint.main([str(source), "--vision-config", str(SIGLIP), "--strict"]) == 0
    assert "ERROR" not in capsys.readouterr().out


def test_another_model_is_refused_in_one_screen(source, shelf, capsys):
    config = source / "config.json"
    config.write_text(config.read_text().replace('"num_hidden_layers": 3', '"num_hidden_layers": 32'))
    assert command_line.run(convert_checkpoint.main, arguments(source, shelf / "out")) == 1
    message = capsys.readouterr().err
    assert "missing tensor: model.language_model.layers.3." in message
    assert f"... and {29 * 9 - 30} more, {29 * 9} in all" in message
    assert message.count("\n") <= SCREEN
    assert unchanged(shelf)


def start(source, output, before):
    """The converter as a process, after some lines of Python that stand for a misfortune."""
    code = (
        f"import runpy, sys\n{before}\nsys.argv = {[str(SCRIPT), *arguments(source, output)]!r}\n"
        f"sys.path.insert(0, {str(SCRIPT.parent)!r})\nrunpy.run_path(sys.argv[0], run_name='__main__')"
    )
    return python_process.start(["-c", code])


FULL = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (9_000_000, 9_000_000))"
STALLS = """
import time
from transformers_lladav import weights
save_file = weights.save_file
def save_and_stall(*arguments, **options):
    save_file(*arguments, **options)
    print("half", flush=True)
    time.sleep(60)
weights.save_file = save_and_stall
"""


def test_a_disk_that_fills_up_while_writing(source, shelf):
    process = start(source, shelf / "out", FULL)  # the weights are one file of 16.4 MB
    _, message = process.communicate(timeout=60)
    assert process.returncode == 1, message
    assert "error:" in message
    assert "Traceback" not in message
    assert message.count("\n") <= SCREEN
    assert unchanged(shelf)


def test_a_disk_that_is_too_small_is_noticed_before(source, shelf, capsys, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**8, 9 * 10**7, 10**7))
    assert command_line.run(convert_checkpoint.main, arguments(source, shelf / "out")) == 1
    assert "its disk has 0.01 GB free; nothing was written" in capsys.readouterr().err
    assert unchanged(shelf)


def test_a_read_only_place(source, capsys):
    # /proc takes no folders, whoever asks.
    assert command_line.run(convert_checkpoint.main, arguments(source, "/proc/lladav/out")) == 1
    message = capsys.readouterr().err
    assert message.startswith("error:")
    assert "/proc/lladav" in message


def test_an_output_below_a_file(source, shelf, capsys):
    assert command_line.run(convert_checkpoint.main, arguments(source, shelf / "precious" / "out")) == 1
    assert "precious" in capsys.readouterr().err
    assert unchanged(shelf)


def test_a_terminated_run_leaves_nothing_and_can_be_started_again(source, shelf):
    process = start(source, shelf / "out", STALLS)
    assert process.stdout.readline() == "half\n"
    assert not (shelf / "out").exists()
    process.terminate()
    _, message = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "interrupted; no half-written folder is left" in message
    assert unchanged(shelf)
    assert command_line.run(convert_checkpoint.main, arguments(source, shelf / "out")) == 0


def test_a_killed_run_is_tidied_up_by_the_next(source, shelf):
    process = start(source, shelf / "out", STALLS)
    assert process.stdout.readline() == "half\n"
    process.kill()
    process.communicate(timeout=30)
    assert not (shelf / "out").exists()
    assert len(list(shelf.glob(".out.*.part"))) == 1
    assert command_line.run(convert_checkpoint.main, arguments(source, shelf / "out")) == 0
    assert sorted(path.name for path in shelf.iterdir()) == ["out", "precious"]
