"""A training run: model, data and recipe in; checkpoints, figures and a folder to use out. Repeating it goes on."""

import importlib.util
import json
import os
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from transformers import AutoProcessor, EarlyStoppingCallback

from .data import Examples
from .files import held
from .held_out import choose_questions
from .processes import any_process, training_processes
from .recipes import Recipe
from .record_files import Progress
from .run_settings import (
    CHECKPOINTS,
    RunSettings,
    Schedule,
    begin_or_continue,
    finish_record,
    is_finished,
    training_arguments,
)
from .samples import Numbered
from .trainable import Trainable, summarise, trained_names
from .trainer import DiffusionTrainer, WholeCheckpoints, last_checkpoint, remove_broken_checkpoints
from .training_callbacks import AssertTrainable, EvaluateAtEnd, GuardGradients, Report, StopOnSignal
from .training_data import LengthCheck, check_lengths, hold_out, open_data
from .training_model import load_for_training
from .training_results import ADAPTER, METRICS, MODEL, final_metrics, write_result

HELD_OUT_SHARE = 0.05
ENOUGH_TO_HOLD_OUT = 20


@dataclass(frozen=True)
class TrainingData:
    """What a run learns from and is measured on.

    Attributes:
        train: examples, or a stream of samples.
        held_out: examples, none if nothing is held out.
        lengths: tokens of each training example; None for a stream.
        facts: counts, for people and for the record of the run.
    """

    train: Any
    held_out: Sequence[Any]
    lengths: list[int] | None
    facts: dict[str, Any]


def load_data(
    settings: RunSettings,
    recipe: Recipe,
    processor: Any,
    devices: int = 1,
    on_progress: Callable[[str], Progress] | None = None,
) -> TrainingData:
    """Open, split and measure the data of a run.

    Args:
        settings: where they are.
        recipe: gives length, prompt and seed.
        processor: counts tokens.
        devices: how many take part.
        on_progress: gives, for what is being done, a function that is told how far it is.

    Returns:
        The data.

    Raises:
        DataError: if they cannot be read, or nothing is left of them.
        RecordError: at the first record that cannot be used, unless `skip_bad`.
        ValueError: if so few, or so many, cannot be held out.
        ImportError: if the Hub is to be asked, or a video file to be read, and a package is missing.
    """
    report = on_progress or (lambda what: lambda done, total: None)
    if settings.stream:
        stream = open_data(
            settings.data,
            stream=True,
            skip_bad=settings.skip_bad,
            block=recipe.device_batch_size * devices,
            shuffle_buffer=settings.shuffle_buffer,
            seed=recipe.seed,
            **settings.read_options(),
        )
        held_out = _held_out_alone(settings, recipe, processor, report)
        return TrainingData(stream, held_out, None, {"samples": None, "held_out": len(held_out)})
    skipped, measured = _measured(settings.data, settings, recipe, processor, report)
    train, held_out, lengths = (
        measured.examples,
        _held_out_alone(settings, recipe, processor, report),
        measured.lengths,
    )
    share = settings.held_out_share
    if share is None and settings.eval_data is None and len(train) >= ENOUGH_TO_HOLD_OUT:
        share = HELD_OUT_SHARE
    if share and settings.eval_data is None:
        train, held_out = hold_out(train, share=share, seed=recipe.seed)
        lengths = [measured.lengths[number] for number in train.numbers]
    facts = {
        "samples": len(train),
        "tokens": sum(lengths),  # also tells other data of the same number apart
        "held_out": len(held_out),
        "left_out": skipped + len(measured.left_out),
        "cut": measured.cut,
    }
    return TrainingData(train, held_out, lengths, facts)


def _held_out_alone(
    settings: RunSettings, recipe: Recipe, processor: Any, report: Callable[[str], Progress]
) -> Sequence[Any]:
    """Held-out data from a source of their own, if there is one."""
    if settings.eval_data is None:
        return []
    return _measured(settings.eval_data, settings, recipe, processor, report)[1].examples


def _measured(
    source: str, settings: RunSettings, recipe: Recipe, processor: Any, report: Callable[[str], Progress]
) -> tuple[int, LengthCheck]:
    """How many records of a source were left out, and the others with their lengths."""
    opened = open_data(
        source, skip_bad=settings.skip_bad, on_progress=report("Reading the data"), **settings.read_options()
    )
    assert isinstance(opened, Examples)
    checked = check_lengths(
        opened,
        processor,
        recipe.max_length,
        prompt="chat" if recipe.chat_share else recipe.prompt,  # the longer form
        image_separator=recipe.image_separator,
        skip_bad=settings.skip_bad,
        on_progress=report("Counting tokens"),
    )
    return len(opened.skipped), checked


@dataclass(frozen=True)
class Outcome:
    """How a run ended.

    Attributes:
        product: the folder to use; None if the run was interrupted.
        metrics: figures of what it ends with.
        step: the last step.
        interrupted: name of the signal that stopped it, if one did.
        earlier: whether it had ended before, so that there was nothing to do.
    """

    product: Path | None
    metrics: dict[str, Any]
    step: int
    interrupted: str | None = None
    earlier: bool = False


class Run:
    """A run that is ready: data read, model loaded, and what trains chosen and counted.

    Args:
        settings: model, data, output.
        recipe: what to do.
        on_progress: gives, for what is being done, a function that is told how far it is.
        data: examples that are made and not read; the settings' `data` is then only their name.

    Attributes:
        trainable: what trains, by part.
        data: what it learns from.
        schedule: its steps.

    Raises:
        DataError: if the data cannot be used.
        ValueError: if recipe, model, data and devices do not go together.
        OSError: if there is no such model.
        ImportError: if a package is missing.
    """

    def __init__(
        self,
        settings: RunSettings,
        recipe: Recipe,
        on_progress: Callable[[str], Progress] | None = None,
        data: TrainingData | None = None,
    ) -> None:
        _check_packages(settings.report_to)
        if recipe.group_by_length and settings.stream:
            raise ValueError(
                "group_by_length=True groups by lengths, which a stream does not know before; leave out --stream, or "
                "pass --set group_by_length=false"
            )
        self.settings, self.recipe = settings, recipe
        self.state = training_processes(settings.device)
        processor = AutoProcessor.from_pretrained(settings.model, trust_remote_code=settings.trust_remote_code)
        with self.state.main_process_first():
            self.data = data or load_data(
                settings, recipe, processor, self.state.num_processes, on_progress if self.is_main else None
            )
        self.schedule = Schedule.of(recipe, self.data.facts["samples"], self.state.num_processes)
        if not self.data.held_out:
            _check_without_held_out(recipe)
        self.prepared = load_for_training(
            settings.model, recipe, self.state.device, settings.trust_remote_code, is_sharded()
        )
        self.trainable: list[Trainable] = summarise(self.prepared.model, recipe)

    @property
    def is_main(self) -> bool:
        """Whether this process writes and prints."""
        return bool(self.state.is_main_process)

    def trainer(self, callbacks: Sequence[Any] = (), output: Path | None = None) -> DiffusionTrainer:
        """Put together what trains.

        Args:
            callbacks: more of them.
            output: folder of the run, if it is not to be the one of the settings.

        Returns:
            The trainer.
        """
        settings = replace(self.settings, output=output or self.settings.output)
        held_out = Numbered(self.data.held_out) if self.data.held_out else None
        questions = choose_questions(self.data.held_out, self.prepared.processor.tokenizer, self.recipe.eval_answers)
        expected = set(trained_names(self.prepared.model))
        stops = [EarlyStoppingCallback(self.recipe.patience)] if self.recipe.patience and held_out else []
        return DiffusionTrainer(
            self.recipe,
            self.prepared,
            training_arguments(settings, self.recipe, self.schedule, self.prepared.precision, held_out is not None),
            Numbered(self.data.train) if self.data.lengths is not None else self.data.train,
            held_out,
            questions,
            self.data.lengths if self.recipe.group_by_length else None,
            [*callbacks, *stops, AssertTrainable(expected), GuardGradients(), EvaluateAtEnd()],
        )

    def train(
        self,
        on_step: Callable[[int, int], None] | None = None,
        on_figures: Callable[[dict[str, Any]], None] | None = None,
    ) -> Outcome:
        """Train to the end, from the last whole checkpoint if there is one, and write the product.

        Args:
            on_step: is told the step and how many there are.
            on_figures: gets what is logged.

        Returns:
            What came of it.

        Raises:
            FloatingPointError: if a loss or gradient is no number; the last checkpoint stays.
            OSError: if something cannot be written; the last checkpoint stays.
            ValueError: if the output folder holds a run with other settings, or another run writes to it.
        """
        with held(self.settings.output) if self.is_main else nullcontext():
            return self._train(on_step, on_figures)

    def _train(
        self, on_step: Callable[[int, int], None] | None, on_figures: Callable[[dict[str, Any]], None] | None
    ) -> Outcome:
        """The same, in a folder that nobody else writes to."""
        folder = self.settings.output
        product = folder / (MODEL if self.recipe.lora is None else ADAPTER)
        earlier = begin(self.settings, self.recipe, self.data.facts, product, self.state)
        if earlier is not None:
            return Outcome(product, earlier, self.schedule.steps, earlier=True)
        stop = StopOnSignal(any_process)
        callbacks = [Report(folder, on_step, on_figures), stop, *(_tensorboard(self.settings) if self.is_main else [])]
        trainer = self.trainer(callbacks)
        interrupted = train_on(trainer, stop)
        step = trainer.state.global_step
        if interrupted is not None:
            return Outcome(None, {}, step, interrupted)
        metrics = final_metrics(trainer.state.log_history, trainer.state.best_global_step)
        write_result(product, trainer, self.prepared, self.recipe, {**metrics, **self.data.facts})
        if self.is_main:
            finish_record(folder)
        return Outcome(product, metrics, step)


def begin(
    settings: RunSettings, recipe: Recipe, facts: dict[str, Any], product: Path, processes: Any
) -> dict[str, Any] | None:
    """Take a folder for a run, or go on with the run that is there; all processes have to call this.

    Args:
        settings: of the run.
        recipe: the recipe.
        facts: of the data, such as the number of samples.
        product: folder of what the run ends with.
        processes: those of the run, from `processes.training_processes`.

    Returns:
        The figures of a run that had ended before; None if there is something to do.

    Raises:
        FileExistsError: if something else stands in the output folder.
        ValueError: if it is a run with other settings, naming them.
    """
    if processes.is_main_process:
        begin_or_continue(settings, recipe, facts)
        remove_broken_checkpoints(settings.output / CHECKPOINTS)
    processes.wait_for_everyone()
    if not is_finished(settings.output) or not (product / METRICS).is_file():
        return None
    metrics: dict[str, Any] = json.loads((product / METRICS).read_text(encoding="utf-8"))
    return metrics


def train_on(trainer: WholeCheckpoints, stop: StopOnSignal) -> str | None:
    """Train to the end, from the last whole checkpoint if there is one.

    Args:
        trainer: ready to train.
        stop: one of its callbacks.

    Returns:
        Name of the signal that stopped it before its last step, if one did.
    """
    last = last_checkpoint(Path(trainer.args.output_dir))
    try:
        trainer.train(resume_from_checkpoint=str(last) if last else None)
    finally:
        stop.release()
    return stop.received if trainer.state.global_step < trainer.state.max_steps else None


def _check_without_held_out(recipe: Recipe) -> None:
    """Refuse what is decided by evaluations, of which there will be none."""
    given = [
        text
        for text, is_given in (
            ('best_by="exact_match"', recipe.best_by == "exact_match"),
            (f"patience={recipe.patience}", recipe.patience is not None),
        )
        if is_given
    ]
    if given:
        raise ValueError(f"{' and '.join(given)}: needs held-out data; give --eval-data or --hold-out 0.05")


def is_sharded() -> bool:
    """Whether `accelerate launch` was told to shard parameters: FSDP or ZeRO-3."""
    return any(
        os.environ.get(name, "false").lower() in ("true", "1")
        for name in ("ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED")
    )


def _check_packages(report_to: str) -> None:
    """Find out before anything is loaded whether what logs a run is installed."""
    train = "'transformers_lladav[train]'"
    needed = {"tensorboard": ("logs for TensorBoard", train), "wandb": ("logs for wandb", "wandb")}
    if report_to in needed and importlib.util.find_spec(report_to) is None:
        what, install = needed[report_to]
        other = "or pass --report-to none (log.jsonl has all figures in any case)"
        raise ImportError(f"{what}: {report_to} is missing; pip install {install}, {other}")


def _tensorboard(settings: RunSettings) -> list[Any]:
    """Logs for TensorBoard beside the checkpoints, unless something else was asked for."""
    if settings.report_to != "tensorboard":
        return []
    from torch.utils.tensorboard import SummaryWriter
    from transformers.integrations import TensorBoardCallback

    return [TensorBoardCallback(SummaryWriter(str(settings.output / "logs")))]
