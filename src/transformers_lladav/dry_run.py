"""Try a run out before it is begun: one step on its longest samples, memory and time, and nothing written."""

import math
import time
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from .training_memory import estimate


@dataclass(frozen=True)
class Tried:
    """What a dry run found.

    Attributes:
        loss: of the step.
        tokens: of its longest row, which is a sample or several that were packed.
        batch_seconds: for one batch, forward and backward, and a step of the optimiser.
        total_seconds: for the whole run, if all batches were like this one.
        peak_bytes: that were allocated on this GPU; None on a CPU.
        computed_bytes: what such a batch needs on each device by arithmetic.
    """

    loss: float
    tokens: int
    batch_seconds: float
    total_seconds: float
    peak_bytes: int | None
    computed_bytes: int

    def lines(self) -> list[str]:
        """The findings, in sentences."""
        peak = "" if self.peak_bytes is None else f"{self.peak_bytes / 1e9:.2f} GB were allocated at most; "
        return [
            f"One step on the longest samples ({self.tokens:,} tokens) works: loss {self.loss:.4f}, "
            f"{self.batch_seconds:.2f} s a batch.",
            f"Memory: {peak}{self.computed_bytes / 1e9:.2f} GB by arithmetic, of one device.",
            f"Time: {_duration(self.total_seconds)} for all steps if every batch was like this one, without "
            "evaluations and checkpoints.",
            "Nothing was written.",
        ]


def try_out(run: Any) -> Tried:
    """Run one optimiser step, twice to leave the first one's preparations out of the time.

    Args:
        run: a `train.Run`; its model is not good for anything afterwards.

    Returns:
        What was found.
    """
    with TemporaryDirectory() as scratch:  # Trainer makes its output folder
        trainer = run.trainer(output=Path(scratch))
    inputs = trainer._prepare_inputs(_longest_batch(run, trainer))
    optimizer = trainer.create_optimizer()
    if run.state.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    for _ in range(2):
        begun = time.perf_counter()
        loss = _step(trainer, optimizer, dict(inputs))
        seconds = time.perf_counter() - begun
    rows, tokens = inputs["input_ids"].shape
    # What was made of the samples: packing makes fewer rows, complementary views twice as many.
    of_rows = replace(run.recipe, device_batch_size=rows, global_batch_size=rows, complementary=False)
    computed = estimate(
        run.prepared.bare.config,
        of_rows,
        tokens,
        math.ceil(len(inputs.get("pixel_values", ())) / rows),
        devices=run.schedule.devices,
        sharded=trainer.sharded,
        precision=run.prepared.precision,
    )
    return Tried(
        loss=loss,
        tokens=tokens,
        batch_seconds=seconds,
        total_seconds=seconds * run.schedule.accumulation * run.schedule.steps,
        peak_bytes=torch.cuda.max_memory_allocated() if run.state.device.type == "cuda" else None,
        computed_bytes=computed.total,
    )


def _longest_batch(run: Any, trainer: Any) -> Any:
    """The longest samples as a batch, or the first ones of a stream."""
    if run.data.lengths is None:
        return next(iter(trainer.get_train_dataloader()))
    order = sorted(range(len(run.data.lengths)), key=lambda number: -run.data.lengths[number])
    return trainer.data_collator([trainer.train_dataset[number] for number in order[: run.recipe.device_batch_size]])


def _step(trainer: Any, optimizer: torch.optim.Optimizer, inputs: dict[str, Any]) -> float:
    trainer.model.train()
    with trainer.accelerator.autocast():
        loss = trainer.compute_loss(trainer.model, inputs)
    trainer.accelerator.backward(loss)
    optimizer.step()
    optimizer.zero_grad()
    return float(loss.item())


def _duration(seconds: float) -> str:
    minutes = seconds / 60
    return f"{minutes:.1f} minutes" if minutes < 90 else f"{minutes / 60:.1f} hours"
