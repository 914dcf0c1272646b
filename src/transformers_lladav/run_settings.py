"""What a run is about beside its recipe, how its steps are counted, and what Trainer is told."""

import json
import math
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import TrainingArguments

from .files import content_of, write_text
from .processes import on_cpu
from .recipes import Recipe
from .run_records import differences, read_record

RUN = "run.json"
CHECKPOINTS = "checkpoints"
CHECKPOINTS_PER_RUN = 10
LOGS_PER_RUN = 200


@dataclass(frozen=True)
class RunSettings:
    """What a run is about, beside its recipe.

    Attributes:
        model: folder or Hub id of a LLaDA-V.
        data: file or folder to learn from, or a data set of the Hub; see `training_data.open_data`.
        output: folder of the run.
        eval_data: held-out data; by default some of `data` are held out.
        held_out_share: how much of `data` is held out; by default a twentieth, of 20 samples or more.
        image_folder: where pictures' paths start; see `data.read_examples`.
        allow_outside: see `data.read_examples`.
        allow_urls: see `data.read_examples`.
        question: see `data.read_examples`.
        stream: read the data as they come, for sets that are too large to be looked at before.
        shuffle_buffer: samples of a stream to draw the next one from.
        skip_bad: leave out records that cannot be used, and count them.
        workers: processes that read pictures; none on a CPU, up to four for a GPU by default.
        device: "auto" or "cpu".
        report_to: "tensorboard", "wandb" or "none".
        trust_remote_code: run code that the checkpoint brings.

    Raises:
        ValueError: if a part is to be held out of data that are not split.
    """

    model: str
    data: str
    output: Path
    eval_data: str | None = None
    held_out_share: float | None = None
    image_folder: Path | None = None
    allow_outside: bool = False
    allow_urls: bool = False
    question: str | None = None
    stream: bool = False
    shuffle_buffer: int = 1000
    skip_bad: bool = False
    workers: int | None = None
    device: Literal["auto", "cpu"] = "auto"
    report_to: Literal["tensorboard", "wandb", "none"] = "tensorboard"
    trust_remote_code: bool = False

    def __post_init__(self) -> None:
        if self.held_out_share and (self.stream or self.eval_data is not None):
            why = "--eval-data has them" if self.eval_data is not None else "a stream is not split; give --eval-data"
            raise ValueError(f"--hold-out {self.held_out_share}: no samples are held out, because {why}; leave it out")

    def read_options(self) -> dict[str, Any]:
        """How records are read."""
        given = {"image_folder": self.image_folder, "question": self.question}
        options = {name: value for name, value in given.items() if value is not None}
        return {**options, "allow_outside": self.allow_outside, "allow_urls": self.allow_urls}


@dataclass(frozen=True)
class Schedule:
    """The steps of a run.

    Attributes:
        steps: optimiser steps.
        accumulation: batches of a device that make up its share of a step.
        checkpoint_every: steps between checkpoints.
        log_every: steps between figures.
        devices: how many take part.
    """

    steps: int
    accumulation: int
    checkpoint_every: int
    log_every: int
    devices: int

    @classmethod
    def of(cls, recipe: Recipe, samples: int | None, devices: int) -> "Schedule":
        """Count the steps.

        Args:
            recipe: gives batch sizes and epochs.
            samples: to train on; None for a stream, which nobody has counted.
            devices: how many take part.

        Returns:
            The schedule.

        Raises:
            ValueError: if the batch sizes do not fit the devices, or a stream has no number of steps.
        """
        together = recipe.device_batch_size * devices
        if recipe.global_batch_size % together:
            fitting = max(recipe.global_batch_size // together, 1) * together
            raise ValueError(
                f"global_batch_size={recipe.global_batch_size} is not a multiple of device_batch_size="
                f"{recipe.device_batch_size} times {devices} devices; pass --set global_batch_size={fitting}"
            )
        if recipe.max_steps is not None:
            steps = recipe.max_steps
        elif samples is None:
            raise ValueError("a stream does not say how long it is; pass --set max_steps=1000")
        else:
            steps = _rounded_up(recipe.epochs * math.ceil(samples / recipe.global_batch_size))
        return cls(
            steps=steps,
            accumulation=recipe.global_batch_size // together,
            checkpoint_every=recipe.checkpoint_every or math.ceil(steps / CHECKPOINTS_PER_RUN),
            log_every=min(10, math.ceil(steps / LOGS_PER_RUN)),
            devices=devices,
        )


def _rounded_up(steps: float) -> int:
    """A whole number of steps; 1.1 epochs of 50 are 55, although their product is a little more."""
    return math.ceil(round(steps, 6))


def training_arguments(
    settings: RunSettings, recipe: Recipe, schedule: Schedule, precision: str, evaluates: bool
) -> TrainingArguments:
    """What Trainer is told.

    Args:
        settings: of the run.
        recipe: the recipe.
        schedule: its steps.
        precision: "bf16", "fp16" or "fp32".
        evaluates: whether there are held-out samples.

    Returns:
        The arguments.
    """
    # `accelerate launch` puts what its settings say here, and Trainer takes it even if it is told "fp32".
    os.environ["ACCELERATE_MIXED_PRECISION"] = {"fp32": "no"}.get(precision, precision)
    on_gpu = settings.device == "auto" and torch.cuda.is_available()
    workers = settings.workers if settings.workers is not None else (min(4, os.cpu_count() or 1) if on_gpu else 0)
    return TrainingArguments(
        output_dir=str(settings.output / CHECKPOINTS),
        max_steps=schedule.steps,
        per_device_train_batch_size=recipe.device_batch_size,
        # Processes get as many batches each; batches of one are told apart from those that are there twice for it.
        per_device_eval_batch_size=recipe.device_batch_size if schedule.devices == 1 else 1,
        gradient_accumulation_steps=schedule.accumulation,
        learning_rate=recipe.learning_rate,
        lr_scheduler_type="constant_with_warmup" if recipe.schedule == "constant" else recipe.schedule,
        warmup_steps=_rounded_up(recipe.warmup_ratio * schedule.steps),
        weight_decay=recipe.weight_decay,
        max_grad_norm=recipe.max_grad_norm,
        bf16=precision == "bf16",
        fp16=precision == "fp16",
        logging_steps=schedule.log_every,
        logging_first_step=True,
        logging_nan_inf_filter=False,
        save_strategy="steps",
        save_steps=schedule.checkpoint_every,
        seed=recipe.seed,
        restore_callback_states_from_checkpoint=True,  # how long patience has lasted
        remove_unused_columns=False,
        label_names=["labels"],
        dataloader_num_workers=workers,
        dataloader_pin_memory=on_gpu,
        # A batch of pictures without newlines gives them no gradient, and the tower's last norm never gets one.
        ddp_find_unused_parameters=not {"newline", "vision_tower"}.isdisjoint(recipe.trains),
        disable_tqdm=True,
        use_cpu=on_cpu(settings.device),
        accelerator_config={"dispatch_batches": False},  # see `streams.Stream`
        report_to="wandb" if settings.report_to == "wandb" else "none",
        **(_evaluation(recipe, schedule) if evaluates else {}),
    )


def _evaluation(recipe: Recipe, schedule: Schedule) -> dict[str, Any]:
    """What Trainer is told where there are held-out samples."""
    return {
        "eval_strategy": "steps",
        "eval_steps": schedule.checkpoint_every,
        "load_best_model_at_end": True,
        "metric_for_best_model": f"eval_{recipe.best_by}",
        "greater_is_better": recipe.best_by == "exact_match",
    }


def begin_or_continue(settings: RunSettings, recipe: Recipe, facts: dict[str, Any]) -> dict[str, Any]:
    """Write down what a run is about, or compare with what stands there.

    Args:
        settings: of the run.
        recipe: the recipe.
        facts: of the data, such as the number of samples.

    Returns:
        The record, that of an interrupted run if it is the same.

    Raises:
        FileExistsError: if something else stands in the output folder.
        ValueError: if it is a run with other settings, naming them.
    """
    path = settings.output / RUN
    about = {
        "model": settings.model,
        "data": settings.data,
        "eval_data": settings.eval_data,
        "question": settings.question,
        "shuffle_buffer": settings.shuffle_buffer if settings.stream else None,
        **facts,
    }
    record = json.loads(json.dumps({"recipe": asdict(recipe), **about, "finished": False}))
    if not path.is_file():
        if settings.output.exists() and content_of(settings.output):
            raise FileExistsError(
                f"{settings.output} holds other files and no run; choose another --output folder or empty it"
            )
        write_text(path, json.dumps(record, indent=2) + "\n")
        return record
    earlier = read_record(path)
    if found := list(differences({**earlier, "finished": False}, record)):
        raise ValueError(
            f"{settings.output} holds a run with other settings: {'; '.join(found[:5])}. Repeat the command it "
            "was begun with to go on, or choose another --output folder"
        )
    return earlier


def finish_record(folder: Path) -> None:
    """Write down that a run is done.

    Args:
        folder: of the run.
    """
    record = read_record(folder / RUN)
    write_text(folder / RUN, json.dumps({**record, "finished": True}, indent=2) + "\n")


def is_finished(folder: Path) -> bool:
    """Whether a run was written down as done.

    Args:
        folder: of the run.

    Returns:
        Whether there is nothing left to do.
    """
    return bool(read_record(folder / RUN)["finished"])
