"""What the tiny stages leave: the checkpoint as it is shipped, and a record of how it came about."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers.utils import CONFIG_NAME

from .files import new_folder, write_text
from .modeling_lladav import LladaVForMaskedDiffusion
from .processing_lladav import LladaVProcessor
from .publishing import save_checkpoint
from .run_records import read_record
from .run_settings import RUN
from .splits import SUITE_VERSION
from .tiny_stages import TinyStage
from .tiny_tower import HEADS
from .train import Outcome
from .training_callbacks import LOG
from .training_results import RECIPE

RECORD = "stages.json"
POINTS = 60  # of a curve, where that many were logged, and less than twice as many
STEPS_KEPT = ("step", "loss", "seconds", "cpu_seconds", *HEADS)


def record_of(folder: Path, stage: TinyStage) -> dict[str, Any]:
    """How a stage went.

    Args:
        folder: of the stage's run.
        stage: what was trained.

    Returns:
        Its recipe, its seconds on the clock and of processors, how many processes, and its curve, thinned out.
    """
    logged = list(map(json.loads, (folder / LOG).read_text(encoding="utf-8").splitlines()))
    records, steps = [record for record in logged if "loss" in record], max(record["step"] for record in logged)
    every = max(1, len(records) // POINTS)
    curve = [records[number : number + every] for number in range(0, len(records), every)]
    recipe = read_record(folder / RUN)["recipe"]
    points = []
    for group in curve:
        point = {name: group[-1][name] for name in STEPS_KEPT if name in group[-1]}
        points.append({**point, "loss": round(sum(record["loss"] for record in group) / len(group), 4)})
    return {
        "name": stage.recipe.name,
        "description": stage.recipe.description,
        "steps": steps,
        "samples": steps * stage.recipe.global_batch_size,
        "seed": stage.recipe.seed,
        "seconds": records[-1].get("seconds"),
        "cpu_seconds": records[-1].get("cpu_seconds"),
        "processes": recipe["global_batch_size"] // recipe["device_batch_size"],
        "recipe": recipe,
        "curve": points,
    }


def write_record(folder: Path, stages: Sequence[TinyStage]) -> Path:
    """Write down how the stages went.

    Args:
        folder: of the runs.
        stages: those that are done.

    Returns:
        The JSON file, `stages.json` in the folder.
    """
    records = [record_of(folder / stage.recipe.name, stage) for stage in stages]
    compiled = any(record["recipe"]["compile"] for record in records)
    processes = max(record["processes"] for record in records)
    program = f"torchrun --nproc_per_node {processes} -m transformers_lladav" if processes > 1 else "lladav"
    document = {
        "command": f"{program} train tiny --all-stages{' --compile' if compiled else ''}",
        "suite_version": SUITE_VERSION,
        "versions": {"torch": torch.__version__},
        "stages": records,
    }
    write_text(folder / RECORD, json.dumps(document, indent=2) + "\n")
    return folder / RECORD


def check_output(output: Path) -> None:
    """Refuse a place for the checkpoint where something else stands, which it would replace.

    Args:
        output: where the checkpoint is to stand.

    Raises:
        FileExistsError: unless it is free, empty or holds an older checkpoint, with its recipes.
    """
    ours = (output / RECIPE).is_file() and (output / CONFIG_NAME).is_file()
    if output.exists() and not ours and not (output.is_dir() and not any(output.iterdir())):
        raise FileExistsError(
            f"{output} holds something else than a checkpoint of these stages; choose another --output folder or "
            "empty it"
        )


def write_checkpoint(folder: Path, outcome: Outcome, output: Path) -> Path:
    """Write the last stage's product in bfloat16, with the recipes of all stages beside it.

    Args:
        folder: of the runs, with a record.
        outcome: of the last stage.
        output: where; an older checkpoint there is replaced when the new one is complete.

    Returns:
        The folder.

    Raises:
        FileExistsError: as of `check_output`.
    """
    check_output(output)
    assert outcome.product is not None
    model = LladaVForMaskedDiffusion.from_pretrained(outcome.product, dtype=torch.bfloat16)
    record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    recipes = {stage["name"]: stage["recipe"] for stage in record["stages"]}
    with new_folder(output, replace=True) as scratch:
        save_checkpoint(model, LladaVProcessor.from_pretrained(outcome.product), scratch)
        write_text(scratch / RECIPE, json.dumps(recipes, indent=2) + "\n")
    return output
