"""Small training runs for the tests: data drawn by the suite, runs in this process and in processes of their own."""

import csv
import json
import os
import random
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

import python_process
from transformers_lladav import BUNDLED_CHECKPOINT
from transformers_lladav.recipes import RECIPES, Lora, Recipe
from transformers_lladav.run_settings import RunSettings
from transformers_lladav.scene_questions import ASKERS
from transformers_lladav.shape_scenes import make_scene, render_scene
from transformers_lladav.train import Outcome, Run

SAMPLES = 16
# Four steps an epoch, a checkpoint every other step, no answers by generation: quick, and nothing is hidden by it.
QUICK = {"global_batch_size": 4, "device_batch_size": 4, "checkpoint_every": 2, "eval_answers": 0, "epochs": 2.0}


class Died(Exception):
    """What a run is killed by in this process."""


def write_data(folder: Path, count: int = SAMPLES, split: str = "train", first: int = 0) -> Path:
    """Draw pictures and write a CSV with a question about each.

    Args:
        folder: where; it is made.
        count: how many.
        split: of the scenes.
        first: number of the first scene.

    Returns:
        The CSV.
    """
    folder.mkdir(parents=True, exist_ok=True)
    table = folder / f"{split}.csv"
    with table.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "question", "answer"])
        for index in range(first, first + count):
            scene = make_scene(split, index)
            render_scene(scene, 96).save(folder / f"{split}-{index}.png")
            # Captions and readings of the whole scene in turn: texts of different lengths.
            question = ASKERS[("caption", "reading", "count")[index % 3]](scene, random.Random(index))
            writer.writerow([f"{split}-{index}.png", question.text, question.answer])
    return table


def quick_recipe(name: str = "lora", **changes: Any) -> Recipe:
    """A recipe with few steps and dropout in its adapters, so that the state of torch's generator matters.

    Args:
        name: of the recipe.
        **changes: of its fields.

    Returns:
        The recipe.
    """
    recipe = replace(RECIPES[name], **QUICK, gradient_checkpointing=False)
    if recipe.lora is not None:
        recipe = replace(recipe, lora=Lora(rank=2, dropout=0.1))
    return replace(recipe, **changes)


def settings_of(data: Path, output: Path, **changes: Any) -> RunSettings:
    """Settings of a run on the bundled checkpoint and the CPU, with nothing held out and no TensorBoard.

    Args:
        data: to learn from.
        output: folder of the run.
        **changes: of the settings.

    Returns:
        The settings.
    """
    given = {"held_out_share": 0.0, "report_to": "none", "device": "cpu", **changes}
    return RunSettings(model=str(BUNDLED_CHECKPOINT), data=str(data), output=output, **given)


def train(settings: RunSettings, recipe: Recipe, die_at: int | None = None) -> Outcome | None:
    """Run in this process.

    Args:
        settings: of the run.
        recipe: of the run.
        die_at: a step at whose end, before anything is saved, the run dies.

    Returns:
        What came of it; None if it died.
    """

    def on_step(step: int, steps: int) -> None:
        if step == die_at:
            raise Died

    # Something else was drawn before, as in any process: a run must not depend on it.
    torch.manual_seed(int.from_bytes(os.urandom(4), "big"))
    with suppress(Died):
        return Run(settings, recipe).train(on_step)
    return None


def log_of(folder: Path) -> list[dict[str, Any]]:
    """What a run logged at its steps, but for times.

    Args:
        folder: of the run.

    Returns:
        The records with a loss, of training or of held-out samples.
    """
    records = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [
        {name: value for name, value in record.items() if not name.endswith(("runtime", "second", "seconds"))}
        for record in records
        if "loss" in record or "eval_loss" in record
    ]


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    """The tensors of a folder's safetensors file.

    Args:
        folder: an adapter, a complete model or a checkpoint.

    Returns:
        Tensors by name.
    """
    (file,) = folder.glob("*.safetensors")
    return load_file(file)


def product_of(folder: Path) -> dict[str, torch.Tensor]:
    """The tensors that a run ended with.

    Args:
        folder: of the run.

    Returns:
        Tensors by name.
    """
    return weights_of(next(path for path in (folder / "adapter", folder / "model") if path.is_dir()))


def same_tensors(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    """Whether two sets of tensors are the same to the bit.

    Args:
        one: tensors by name.
        other: tensors by name.

    Returns:
        Whether names and values are the same.
    """
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def assert_same_run(one: Path, other: Path) -> None:
    """Assert that two runs logged the same losses and rates and ended with the same weights, to the bit.

    Args:
        one: folder of a run.
        other: folder of a run.
    """
    assert log_of(one) == log_of(other)
    assert same_tensors(product_of(one), product_of(other))


def start(arguments: list[str], before: str = "") -> python_process.Process:
    """Start `lladav` in a process of its own.

    Args:
        arguments: of the command.
        before: Python code that is run before it.

    Returns:
        The process.
    """
    script = f"import sys\n{before}\nfrom transformers_lladav.cli import main\nsys.argv[1:] = {arguments!r}\nmain()\n"
    return python_process.start(["-u", "-c", script], env={**os.environ, "HF_HUB_OFFLINE": "1", "COLUMNS": "400"})


def command_line(recipe: str, data: Path, output: Path, *more: str) -> list[str]:
    """The arguments of a run like those of `quick_recipe`.

    Args:
        recipe: its name.
        data: to learn from.
        output: folder of the run.
        *more: arguments.

    Returns:
        The arguments.
    """
    changes = {**QUICK, "gradient_checkpointing": "false"}
    if RECIPES[recipe].lora is not None:
        changes |= {"lora.rank": 2, "lora.dropout": 0.1}
    options = [part for name, value in changes.items() for part in ("--set", f"{name}={value}")]
    place = ["--data", str(data), "--output", str(output), "--device", "cpu", "--report-to", "none"]
    return ["train", recipe, *place, "--threads", "1", "--hold-out", "0", *options, *more]
