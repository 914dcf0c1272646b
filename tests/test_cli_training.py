"""`lladav train`: the same command goes on, stops, and says in a line what is wrong."""

import json
import signal
import sys

import pytest

pytest.importorskip("peft")

from training_runs import (
    assert_same_run,
    command_line,
    product_of,
    quick_recipe,
    same_tensors,
    settings_of,
    start,
    train,
    write_data,
)
from transformers_lladav import BUNDLED_CHECKPOINT, cli
from transformers_lladav.recipes import RECIPES
from transformers_lladav.training_model import load_for_training


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("data"))


@pytest.fixture
def lladav(monkeypatch, capsys):
    """Runs the command line in this process: exit code, stdout, stderr."""
    monkeypatch.setenv("COLUMNS", "400")

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["lladav", *map(str, arguments)])
        with pytest.raises(SystemExit) as left:
            cli.main()
        captured = capsys.readouterr()
        return left.value.code or 0, captured.out, captured.err

    return run


def test_a_run_and_its_repetition(data, tmp_path, lladav):
    command = command_line("lora", data, tmp_path / "run")
    code, out, err = lladav(*command)
    assert code == 0, err
    assert "16 samples to learn from, 0 held out" in out
    assert "language_model, LoRA of rank 2" in out
    assert "8 steps of 4 samples on 1 x cpu, fp32." in out
    assert f"Written to {tmp_path / 'run' / 'adapter'}; try: lladav ask PICTURE QUESTION --adapter" in out
    assert [line.split()[:2] for line in err.splitlines() if line.startswith("step ")] == [
        ["step", str(step)] for step in range(1, 9)
    ]
    written = product_of(tmp_path / "run")
    code, out, _ = lladav(*command)
    assert code == 0
    assert f"This run had ended before; its result is in {tmp_path / 'run' / 'adapter'}" in out
    assert same_tensors(product_of(tmp_path / "run"), written)
    # The command line and a program do the same.
    train(settings_of(data, tmp_path / "other"), quick_recipe())
    assert_same_run(tmp_path / "run", tmp_path / "other")


def test_asking_the_adapter(data, tmp_path, lladav):
    train(settings_of(data, tmp_path / "run"), quick_recipe(learning_rate=3e-3))
    picture = data.parent / "train-0.png"
    question = ["ask", picture, "How many shapes are there?", "--json", "--device", "cpu"]
    code, out, err = lladav(*question, "--adapter", tmp_path / "run" / "adapter")
    assert code == 0, err
    answer = json.loads(out)
    assert (answer["model"], answer["adapter"]) == (str(BUNDLED_CHECKPOINT), str(tmp_path / "run" / "adapter"))
    assert answer["text"]


SLOW = """
import time
from transformers_lladav.trainer import DiffusionTrainer
step = DiffusionTrainer.training_step
def slowly(self, *args, **kwargs):
    time.sleep(1)
    return step(self, *args, **kwargs)
DiffusionTrainer.training_step = slowly
"""


def test_sigterm_from_outside(data, tmp_path):
    folder = tmp_path / "run"
    process = start(command_line("lora", data, folder), SLOW)
    assert any(line.startswith("step      3") for line in process.stderr)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 143
    (line,) = [line for line in err.splitlines() if "Stopped" in line]
    step = int(line.removeprefix("Stopped by SIGTERM after step ").split(";")[0])
    assert line == f"Stopped by SIGTERM after step {step}; repeat the command to go on."
    assert (folder / "checkpoints" / f"checkpoint-{step}" / "complete").is_file()
    assert not (folder / "adapter").exists()
    train(settings_of(data, folder), quick_recipe())
    train(settings_of(data, tmp_path / "whole"), quick_recipe())
    assert_same_run(folder, tmp_path / "whole")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--set", "learning_rat=1"], "a recipe has no field learning_rat; there are name"),
        (["--set", "lora.rank=many"], 'lora.rank="many": it takes a whole number'),
        (["--set", "epochs"], "'epochs' changes nothing: give FIELD=VALUE"),
        (["--set", "trains=[]", "--set", "lora=null"], "trains nothing"),
        (["--set", "lora.targets=nothing"], "the recipe trains nothing: lora.targets='nothing' matches no layer"),
        (["--set", "device_batch_size=3"], "global_batch_size=4 is not a multiple of device_batch_size=3"),
        (["--set", "precision=fp16"], 'precision="fp16" needs a GPU, not cpu'),
        (["--set", "best_by=exact_match", "--set", "eval_answers=4"], "needs held-out data"),
        (["--stream"], "a stream does not say how long it is; pass --set max_steps="),
        (["--report-to", "mlflow"], "--report-to mlflow; choose one of tensorboard, wandb, none"),
        (["--device", "tpu"], "--device tpu; choose one of auto, cpu"),
        (["--hold-out", "0.01"], "holds out 0"),
        (["--data", "nowhere.csv"], "there is no file or folder 'nowhere.csv'"),
        (["--config", "missing.json"], "missing.json"),
    ],
)
def test_what_users_can_put_right_is_a_line(arguments, message, data, tmp_path, lladav):
    code, _, err = lladav(*command_line("lora", data, tmp_path / "run"), *arguments)
    assert code == 2
    lines = [line for line in err.splitlines() if line.startswith("Error: ")]
    assert len(lines) == 1
    assert message in lines[0]
    assert "Traceback" not in err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"epoch": 2}', "a recipe has no field epoch"),
        ('{"lora": {"ranks": 2}}', "a recipe has no field lora.ranks"),
        ("epochs: 2", "this is no JSON"),
        ("[]", "a recipe is a JSON object, not list"),
    ],
)
def test_a_config_with_a_typo(text, message, data, tmp_path, lladav):
    (tmp_path / "recipe.json").write_text(text)
    code, _, err = lladav(*command_line("lora", data, tmp_path / "run"), "--config", tmp_path / "recipe.json")
    assert code == 2
    assert message in err
    assert not (tmp_path / "run").exists()


def test_a_config_comes_before_changes(data, tmp_path, lladav):
    (tmp_path / "recipe.json").write_text(json.dumps({"seed": 7, "max_steps": 3, "weight_decay": 0.5}))
    command = command_line("lora", data, tmp_path / "run")
    code, _, err = lladav(*command, "--config", tmp_path / "recipe.json", "--set", "max_steps=2")
    assert code == 0, err
    recipe = json.loads((tmp_path / "run" / "run.json").read_text())["recipe"]
    assert (recipe["seed"], recipe["max_steps"], recipe["weight_decay"]) == (7, 2, 0.5)


def test_a_loss_that_is_no_number_is_a_line(data, tmp_path, lladav, monkeypatch):
    def poisoned(*args):
        prepared = load_for_training(*args)
        prepared.bare.lm_head.weight.data.fill_(float("nan"))
        return prepared

    monkeypatch.setattr("transformers_lladav.train.load_for_training", poisoned)
    code, _, err = lladav(*command_line("lora", data, tmp_path / "run"))
    assert code == 2
    (line,) = [line for line in err.splitlines() if line.startswith("Error: ")]
    assert "the loss is nan at step 1, with train.csv:" in line
    assert "no checkpoint was written before" in line


def test_a_dry_run_writes_nothing(data, tmp_path, lladav):
    before = sorted(path for path in data.parent.rglob("*"))
    code, out, err = lladav(*command_line("lora", data, tmp_path / "run"), "--report-to", "tensorboard", "--dry-run")
    assert code == 0, err
    for words in ("works: loss", "GB by arithmetic", "Time: ", "Nothing was written."):
        assert words in out
    assert list(tmp_path.iterdir()) == []
    assert sorted(path for path in data.parent.rglob("*")) == before


def test_every_recipe_is_a_command(lladav):
    code, out, _ = lladav("train", "--help")
    assert code == 0
    assert all(name in out for name in RECIPES)
