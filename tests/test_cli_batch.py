"""`lladav batch`: every option arrives, and it says what was done and could not be used."""

import pytest
import typer
from typer.testing import CliRunner

from transformers_lladav import batch_run
from transformers_lladav.batch_run import BatchOutcome
from transformers_lladav.cli_batch import batch

app = typer.Typer()
app.command()(batch)


@pytest.fixture
def command(monkeypatch, tmp_path):
    """Runs the command with a run that ends as told; gives the result and the settings."""
    monkeypatch.setenv("COLUMNS", "200")

    def invoke(outcome, *arguments):
        seen = []
        monkeypatch.setattr(batch_run, "run_batch", lambda settings, report: seen.append(settings) or outcome)
        paths = [str(tmp_path / "in.jsonl"), str(tmp_path / "out.jsonl")]
        return CliRunner().invoke(app, [*paths, *map(str, arguments)]), seen[0]

    return invoke


def test_it_says_what_was_done(command, tmp_path):
    result, _ = command(BatchOutcome(12_345, 0, 0))
    assert result.stdout == f"12,345 records. Written to {tmp_path / 'out.jsonl'}\n"
    result, _ = command(BatchOutcome(10, 2, 4))
    assert "10 records, 4 of them by an earlier run; 2 could not be used. Written to" in result.stdout
    assert result.exit_code == 0


def test_nothing_that_could_be_used_is_a_failure(command):
    assert command(BatchOutcome(3, 3, 0))[0].exit_code == 1


def test_other_processes_say_nothing(command):
    result, _ = command(None)
    assert (result.exit_code, result.stdout) == (0, "")


def test_every_option_arrives(command, tmp_path):
    options = ["--model", "m", "--adapter", "a", "--batch-size", 4, "--column", "said", "--skip-bad", "--seed", 7]
    options += ["--preset", "balanced", "--max-new-tokens", 64, "--block-length", 32, "--steps", 16]
    options += ["--threshold", 0.8, "--set", "prompt_refresh_interval=none", "--image-folder", tmp_path]
    options += ["--allow-outside", "--allow-urls", "--question", "What?", "--device", "cpu", "--trust-remote-code"]
    _, settings = command(BatchOutcome(1, 0, 0), *options)
    assert (settings.source, settings.output) == (tmp_path / "in.jsonl", tmp_path / "out.jsonl")
    assert (settings.model, settings.adapter, settings.column, settings.skip_bad) == ("m", "a", "said", True)
    assert (settings.how.preset, settings.how.seed, settings.how.batch_size) == ("balanced", 7, 4)
    assert settings.how.generation == {
        "max_new_tokens": 64, "block_length": 32, "max_denoising_steps": 16, "threshold": 0.8,
        "prompt_refresh_interval": None,
    }  # fmt: skip
    read = settings.read
    assert (read.image_folder, read.allow_outside, read.allow_urls, read.question) == (tmp_path, True, True, "What?")
    assert (settings.device, settings.trust_remote_code) == ("cpu", True)


def test_a_file_that_is_not_there_is_named(tmp_path):
    result = CliRunner().invoke(app, [str(tmp_path / "none.jsonl"), str(tmp_path / "out.jsonl")])
    assert "none.jsonl" in str(result.exception)
