"""The first of the tiny stages as a run: transformers' Trainer around the vision tower and its reader."""

import json
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader
from transformers import AutoModelForImageTextToText, AutoProcessor, PrinterCallback

from .files import held, new_folder, write_text
from .processes import any_process, training_processes, worker_options
from .publishing import save_checkpoint
from .recipes import Recipe
from .run_settings import RunSettings, Schedule, finish_record, training_arguments
from .tiny_tower import HEADS, PatchPictures, TowerLesson, fit_projector
from .train import Outcome, begin, train_on
from .trainer import WholeCheckpoints
from .training_callbacks import GuardGradients, Report, StopOnSignal
from .training_results import METRICS, MODEL, RECIPE

MEASURED_PICTURES = 512


class TowerTrainer(WholeCheckpoints):
    """Trains a `TowerLesson`; logs how many patches are named right.

    Attributes:
        shares: of the patches of the last batch, by head.
    """

    shares: dict[str, float] = {}

    def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """The lesson's loss; the shares of its last batch are kept."""
        outputs = model(**inputs)
        self.shares = dict(zip(HEADS, outputs["shares"].tolist(), strict=True))
        return outputs["loss"]

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Log the shares of the last batch as well."""
        super().log({**logs, **self.shares}, *args, **kwargs)

    def get_train_dataloader(self) -> DataLoader[Any]:
        """The pictures in the order of their numbers."""
        assert self.train_dataset is not None
        return self.accelerator.prepare(
            DataLoader(
                self.train_dataset,
                self.args.per_device_train_batch_size,
                **worker_options(self.args.dataloader_num_workers),
            )
        )


def train_tower(
    settings: RunSettings,
    recipe: Recipe,
    first: int = 0,
    on_step: Callable[[int, int], None] | None = None,
    on_figures: Callable[[dict[str, Any]], None] | None = None,
) -> Outcome:
    """Train a checkpoint's tower on the suite's pictures, and fit its projector to what the tower then says.

    Args:
        settings: model and output; the data are the suite's.
        recipe: gives steps, batch size and rates.
        first: index of the first picture.
        on_step: is told the step and how many there are.
        on_figures: gets what is logged.

    Returns:
        What came of it; the metrics are the shares of patches whose content is named right, on the validation split.
    """
    with held(settings.output) if training_processes(settings.device).is_main_process else nullcontext():
        return _train(settings, recipe, first, on_step, on_figures)


def _train(
    settings: RunSettings,
    recipe: Recipe,
    first: int,
    on_step: Callable[[int, int], None] | None,
    on_figures: Callable[[dict[str, Any]], None] | None,
) -> Outcome:
    """The same, in a folder that nobody else writes to."""
    folder, product = settings.output, settings.output / MODEL
    assert recipe.max_steps is not None
    count = recipe.max_steps * recipe.global_batch_size
    processes = training_processes(settings.device)
    earlier = begin(settings, recipe, {"samples": count, "first": first}, product, processes)
    if earlier is not None:
        return Outcome(product, earlier, recipe.max_steps, earlier=True)
    processor = AutoProcessor.from_pretrained(settings.model)
    torch.manual_seed(recipe.seed)
    lesson = TowerLesson(AutoModelForImageTextToText.from_pretrained(settings.model, dtype=torch.float32))
    for name, parameter in lesson.model.named_parameters():
        parameter.requires_grad_("vision_tower" in name)
    stop = StopOnSignal(any_process)
    schedule = Schedule.of(recipe, count, processes.num_processes)
    trainer = TowerTrainer(
        model=lesson,
        args=training_arguments(settings, recipe, schedule, "fp32", evaluates=False),
        train_dataset=PatchPictures(processor.image_processor, _patches(lesson.model), first, count),
        callbacks=[Report(folder, on_step, on_figures), stop, GuardGradients()],
    )
    trainer.keep_checkpoints = recipe.keep_checkpoints
    trainer.remove_callback(PrinterCallback)
    interrupted = train_on(trainer, stop)
    step = trainer.state.global_step
    if interrupted is not None:
        return Outcome(None, {}, step, interrupted)
    metrics = {"step": step, **_finish(lesson, processor, recipe.seed)}
    if processes.is_main_process:
        _write(folder, lesson.model, processor, recipe, metrics)
    processes.wait_for_everyone()
    return Outcome(product, metrics, step)


def _write(folder: Path, model: Any, processor: Any, recipe: Recipe, metrics: dict[str, Any]) -> None:
    """The product of a run, after which the run is done."""
    with new_folder(folder / MODEL, replace=True) as scratch:
        save_checkpoint(model, processor, scratch)
        write_text(scratch / RECIPE, recipe.to_json())
        write_text(scratch / METRICS, json.dumps(metrics, indent=2) + "\n")
    finish_record(folder)


def _patches(model: Any) -> int:
    """Along one side of a picture."""
    vision = model.config.vision_config
    return int(vision.image_size // vision.patch_size)


@torch.no_grad()
def _finish(lesson: TowerLesson, processor: Any, seed: int) -> dict[str, float]:
    """Fit the projector, and return the shares of patches of the validation split whose content is named right."""
    pictures = PatchPictures(processor.image_processor, _patches(lesson.model), 0, MEASURED_PICTURES, "validation")
    batch = next(iter(DataLoader(pictures, MEASURED_PICTURES)))
    batch = {name: tensor.to(lesson.model.device) for name, tensor in batch.items()}
    torch.manual_seed(seed)
    fit_projector(lesson.model, batch["pixel_values"])
    return dict(zip(HEADS, lesson.eval()(**batch)["shares"].tolist(), strict=True))
