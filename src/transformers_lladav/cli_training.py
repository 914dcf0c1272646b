"""The commands that train: `lladav train RECIPE`, one for each recipe, over the same options."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from .cli_console import (
    CodeOption,
    FolderOption,
    ModelOption,
    OutsideOption,
    QuestionOption,
    UrlsOption,
    err,
    loading,
    out,
)
from .recipes import RECIPES, Recipe

STOPPED = 143  # as a shell says it of a process that SIGTERM ended

train_app = typer.Typer(help="Train a model on your own data, or the bundled one from scratch.", no_args_is_help=True)

DataOption = Annotated[
    str,
    typer.Option(
        "--data",
        metavar="FILE|ID",
        help="What to learn: LLaVA or chat JSON, JSON lines, CSV, TSV, a folder, or OWNER/NAME[:SPLIT] of the Hub.",
    ),
]
OutputOption = Annotated[
    Path, typer.Option("--output", "-o", metavar="DIR", help="Folder of the run; the same command goes on with it.")
]
EvalDataOption = Annotated[
    str | None, typer.Option("--eval-data", metavar="FILE|ID", help="Held-out data, never trained on.")
]
HoldOutOption = Annotated[
    float | None,
    typer.Option("--hold-out", metavar="SHARE", help="Hold out so much of the data; 0.05 by default, 0 for none."),
]
BufferOption = Annotated[
    int, typer.Option("--shuffle-buffer", min=0, metavar="N", help="With --stream: draw from so many samples.")
]
StreamOption = Annotated[bool, typer.Option("--stream", help="Read as training goes; needs --set max_steps=N.")]
SkipOption = Annotated[bool, typer.Option("--skip-bad", help="Leave out records that cannot be used, and count them.")]
SetOption = Annotated[
    list[str], typer.Option("--set", metavar="FIELD=VALUE", help="Change the recipe: --set lora.rank=64; repeatable.")
]
ConfigOption = Annotated[
    Path | None, typer.Option("--config", metavar="JSON", help="Fields of the recipe, such as an earlier recipe.json.")
]
WorkersOption = Annotated[int | None, typer.Option(min=0, help="Processes that read pictures.")]
ThreadsOption = Annotated[int | None, typer.Option(min=1, help="CPU threads; all by default.")]
ReportOption = Annotated[str, typer.Option(help="'tensorboard', 'wandb' or 'none'.")]
DeviceOption = Annotated[str, typer.Option(help="'auto' or 'cpu'.")]
DryRunOption = Annotated[bool, typer.Option("--dry-run", help="Load, count, try one step, estimate; write nothing.")]


def fine_tune(
    context: typer.Context,
    data: DataOption,
    output: OutputOption = Path("runs/fine-tuning"),
    model: ModelOption = None,
    eval_data: EvalDataOption = None,
    hold_out: HoldOutOption = None,
    image_folder: FolderOption = None,
    allow_outside: OutsideOption = False,
    allow_urls: UrlsOption = False,
    question: QuestionOption = None,
    stream: StreamOption = False,
    shuffle_buffer: BufferOption = 1000,
    skip_bad: SkipOption = False,
    change: SetOption = [],  # noqa: B006
    config: ConfigOption = None,
    workers: WorkersOption = None,
    threads: ThreadsOption = None,
    report_to: ReportOption = "tensorboard",
    device: DeviceOption = "auto",
    dry_run: DryRunOption = False,
    trust_remote_code: CodeOption = False,
) -> None:
    """Train by the recipe that the command is named after."""
    recipe = _recipe(str(context.info_name), config, change)
    _check_choices(report_to, device)
    with loading(show=False):
        from . import BUNDLED_CHECKPOINT
        from .run_settings import RunSettings
        from .train import Run

        use_threads(threads)
        settings = RunSettings(
            model=model or str(BUNDLED_CHECKPOINT), data=data, output=output, eval_data=eval_data,
            held_out_share=hold_out, image_folder=image_folder, allow_outside=allow_outside, allow_urls=allow_urls,
            question=question, stream=stream, shuffle_buffer=shuffle_buffer, skip_bad=skip_bad, workers=workers,
            device=device,  # type: ignore[arg-type]
            report_to=report_to, trust_remote_code=trust_remote_code,  # type: ignore[arg-type]
        )  # fmt: skip
        with _bars() as bars:
            run = Run(settings, recipe, bars)
        if run.is_main:
            _print_plan(run)
        if dry_run:
            _try_out(run)
        else:
            _train(run)


def _add_commands() -> None:
    for recipe in RECIPES.values():
        train_app.command(recipe.name, help=recipe.description)(fine_tune)


_add_commands()


@train_app.command()
def configs(
    name: Annotated[str | None, typer.Argument(help="One of them; only its path is printed.")] = None,
) -> None:
    """List settings for many devices, or print the path of one for `accelerate launch --config_file PATH`."""
    from . import launching

    if name is not None:
        print(launching.find_config(name))  # noqa: T201
        return
    for found, path in launching.configs().items():
        out.print(Text(found, style="bold"))
        out.print(Text(launching.describe_config(path)), soft_wrap=True)
    out.print('accelerate launch --config_file "$(lladav train configs NAME)" -m transformers_lladav train lora ...')


def _recipe(name: str, config: Path | None, changes: list[str]) -> Recipe:
    from .recipe_changes import change_recipe, read_recipe

    recipe = RECIPES[name]
    if config is not None:
        recipe = read_recipe(config.read_text(encoding="utf-8"), recipe)
    return change_recipe(recipe, changes)


def _check_choices(report_to: str, device: str) -> None:
    for option, value, choices in (
        ("--report-to", report_to, ("tensorboard", "wandb", "none")),
        ("--device", device, ("auto", "cpu")),
    ):
        if value not in choices:
            raise ValueError(f"{option} {value}; choose one of {', '.join(choices)}")


def use_threads(threads: int | None) -> None:
    """Compute with so many threads; as many as there are cores by default."""
    if threads is not None:
        import torch

        torch.set_num_threads(threads)


@contextmanager
def _bars() -> Iterator[Callable[[str], Callable[[int, int], None]]]:
    """A bar for everything that takes long before training."""
    with Progress(console=err, transient=True) as progress:

        def bar(what: str) -> Callable[[int, int], None]:
            task = progress.add_task(what, total=None)
            return lambda done, total: progress.update(task, completed=done, total=total)

        yield bar


def _print_plan(run: Any) -> None:
    """What will train on what, before it does."""
    facts, schedule, recipe = run.data.facts, run.schedule, run.recipe
    samples = "a stream" if facts["samples"] is None else f"{facts['samples']:,}"
    parts = [f"{samples} samples to learn from, {facts['held_out']:,} held out"]
    parts += [
        f"{facts[name]:,} {text}" for name, text in (("left_out", "left out"), ("cut", "cut")) if facts.get(name)
    ]
    out.print(Text("; ".join(parts)), soft_wrap=True)
    table = Table("what trains", "tensors", "parameters", "of", "learning rate", box=None, pad_edge=False)
    for item in run.trainable:
        name = f"{item.part}, LoRA of rank {recipe.lora.rank}" if item.adapter else item.part
        table.add_row(name, f"{item.tensors:,}", f"{item.parameters:,}", f"{item.total:,}", f"{item.learning_rate:g}")
    out.print(table)
    trained = sum(item.parameters for item in run.trainable)
    devices = f"{schedule.devices} x {run.state.device.type}, {run.prepared.precision}"
    out.print(
        f"{trained:,} parameters train, everything else is frozen. "
        f"{schedule.steps:,} steps of {recipe.global_batch_size} samples on {devices}.",
        soft_wrap=True,
    )


def step_bar(show: bool = True) -> Progress:
    """A bar for the steps of a training."""
    name = TextColumn("{task.description}")
    columns = (name, BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    return Progress(*columns, console=err, transient=True, disable=not show)


def figures_above(bar: Progress) -> Callable[[dict[str, Any]], None]:
    """What prints figures that were logged above a bar, where they are of interest to people."""

    def show(record: dict[str, Any]) -> None:
        if line := _figures(record):
            bar.console.print(line, highlight=False)

    return show


def _train(run: Any) -> None:
    with step_bar(run.is_main) as bar:
        task = bar.add_task("Training", total=run.schedule.steps)

        def show_step(step: int, steps: int) -> None:
            bar.update(task, completed=step, total=steps)

        outcome = run.train(show_step, figures_above(bar))
    if not run.is_main:
        return
    if outcome.interrupted is not None:
        err.print(f"Stopped by {outcome.interrupted} after step {outcome.step}; repeat the command to go on.")
        sys.exit(STOPPED)
    if "eval_exact_match" in outcome.metrics:
        out.print(f"Held-out answers right to the letter: {outcome.metrics['eval_exact_match']:.1%}")
    option = "--adapter" if run.recipe.lora is not None else "--model"
    what = "This run had ended before; its result is in" if outcome.earlier else "Written to"
    told = Text(f"{what} {outcome.product}; try: lladav ask PICTURE QUESTION {option} {outcome.product}")
    out.print(told, soft_wrap=True)


def _figures(record: dict[str, Any]) -> str:
    """A line of what was logged, nothing for what is of no interest to people."""
    shown = {"loss": "loss {:.4f}", "learning_rate": "rate {:.2e}", "grad_norm": "gradient {:.2f}"}
    held_out = {"eval_loss": "held-out loss {:.4f}", "eval_exact_match": "exact match {:.1%}"}
    figures = [text.format(record[name]) for name, text in (shown | held_out).items() if name in record]
    return f"step {record['step']:>6}  {'  '.join(figures)}" if figures else ""


def _try_out(run: Any) -> None:
    from .dry_run import try_out

    tried = try_out(run)
    if run.is_main:
        for line in tried.lines():
            out.print(Text(line), soft_wrap=True)
