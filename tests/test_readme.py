"""The README is true: its Python runs, its tables are those of the result files, its links lead somewhere."""

import re
import shlex
from pathlib import Path

import pytest

import python_process
from documents import blocks_of
from training_runs import write_data

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language):
    return [block.code for block in blocks_of(README, language) if not block.note]


@pytest.mark.parametrize("code", blocks("python"))
def test_python_blocks_run_and_answer(code):
    run = python_process.run(["-c", code], cwd=ROOT)
    assert run.returncode == 0, run.stderr
    # Each block prints an answer about the picture of the scene, which has words of that world in it.
    assert re.search(r"one|two|three|red|green|blue|yellow|purple|orange|pink|brown", run.stdout), run.stdout


def test_tables_are_rendered_from_the_result_files():
    check = python_process.run(["model_cards/render_readme.py", "--check"], cwd=ROOT)
    assert check.returncode == 0, "stale tables: run `make readme`" + check.stderr


def test_commands_of_the_readme_exist():
    commands = [line for code in blocks("bash") for line in code.splitlines() if line.startswith("lladav ")]
    assert commands
    for line in commands:
        command = line.split()[1]
        run = python_process.run(["-m", "transformers_lladav", command, "--help"])
        assert run.returncode == 0, line


def test_pictures_and_a_table_become_an_adapter(tmp_path):
    """The five lines of the section on fine-tuning, to the letter but for the installation."""
    (block,) = [block for block in blocks_of(README, "bash") if "pictures/train.csv" in block.note]
    lines = block.code.splitlines()
    assert len(lines) == 5
    assert lines[0].startswith("pip install")
    write_data(tmp_path / "pictures", 24)  # train.csv, and pictures train-0.png and so on
    for line in lines[1:]:
        run = python_process.run(["-m", "transformers_lladav", *shlex.split(line)[1:]], cwd=tmp_path, timeout=300)
        assert run.returncode == 0, f"{line}\n{run.stdout}{run.stderr}"
    assert (tmp_path / "runs" / "mine" / "adapter" / "adapter_model.safetensors").is_file()
    assert (tmp_path / "runs" / "mine" / "merged" / "model.safetensors").is_file()


def test_make_targets_of_the_readme_exist():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"^make (\w+)", README, re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_files_and_anchors_that_are_linked_exist():
    anchors = {
        re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-")
        for title in re.findall(r"^#+ (.*)$", README, re.MULTILINE)
    }
    for target in re.findall(r"\]\(([^)]+)\)", README):
        if target.startswith("#"):
            assert target[1:] in anchors, target
        elif not target.startswith("http"):
            assert (ROOT / target).exists(), target
