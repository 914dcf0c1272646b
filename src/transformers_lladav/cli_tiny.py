"""The command that trains the bundled checkpoint from nothing: `lladav train tiny`."""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.progress import Progress
from rich.table import Table
from rich.text import Text

from .cli_console import err, loading, out
from .cli_training import STOPPED, figures_above, step_bar, use_threads


def tiny(
    runs: Annotated[
        Path, typer.Option("--runs", metavar="DIR", help="Folder of the runs; those found there go on.")
    ] = Path("runs/tiny"),
    all_stages: Annotated[
        bool, typer.Option("--all-stages", help="Go through all stages, to the checkpoint.")
    ] = False,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="DIR", help="For the checkpoint; by default in --runs.")
    ] = None,
    workers: Annotated[int, typer.Option(min=0, help="Processes that draw pictures.")] = 1,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads; all by default.")] = None,
    compiled: Annotated[
        bool, typer.Option("--compile", help="Compile the layers: faster, where there is a C++ compiler.")
    ] = False,
) -> None:
    """Train the bundled checkpoint from nothing, in the paper's stages; by default the next one only.

    The same command goes on with a run that was interrupted. No data are needed: pictures and questions are drawn.
    With several processes: torchrun --nproc_per_node 2 -m transformers_lladav train tiny ...
    """
    with loading(show=False):
        from .processes import training_processes
        from .tiny_results import check_output, write_checkpoint, write_record
        from .tiny_stages import STAGES, next_stage, train_stages

        use_threads(threads)
    is_main = training_processes().is_main_process
    ahead = next_stage(runs)
    until = len(STAGES) if all_stages else min(ahead + 1, len(STAGES))
    checkpoint = output or runs / "checkpoint"
    check_output(checkpoint)  # before hours of training
    if is_main:
        _print_stages(STAGES, ahead)
    with step_bar(is_main) as bar:
        outcomes = train_stages(runs, until=until, on_stage=_shown_by(bar), workers=workers, compiled=compiled)
    if outcomes[-1].interrupted is not None:
        if is_main:
            err.print(f"Stopped by {outcomes[-1].interrupted}; repeat the command to go on.")
        sys.exit(STOPPED)
    if not is_main:
        return
    write_record(runs, STAGES[:until])
    if until < len(STAGES):
        again = f"Repeat the command for {STAGES[until].recipe.name}, or give --all-stages to train to the end."
        out.print(Text(f"{outcomes[-1].product} is trained. {again}"), soft_wrap=True)
        return
    folder = write_checkpoint(runs, outcomes[-1], checkpoint)
    out.print(Text(f"Written to {folder}; try: lladav ask PICTURE QUESTION --model {folder}"), soft_wrap=True)


def _shown_by(bar: Progress) -> Callable[[Any], dict[str, Any]]:
    """Lets a bar show how far every stage is."""

    def on_stage(stage: Any) -> dict[str, Any]:
        task = bar.add_task(stage.recipe.name, total=stage.recipe.max_steps)
        return {
            "on_step": lambda step, steps: bar.update(task, completed=step, total=steps),
            "on_figures": figures_above(bar),
        }

    return on_stage


def _print_stages(stages: Sequence[Any], ahead: int) -> None:
    """What there is to train, and what of it is done."""
    table = Table("stage", "", "steps", "samples", "", box=None, pad_edge=False)
    for number, stage in enumerate(stages):
        recipe, steps = stage.recipe, stage.recipe.max_steps
        samples = f"{steps * recipe.global_batch_size:,}"
        table.add_row(recipe.name, recipe.description, f"{steps:,}", samples, "done" if number < ahead else "")
    out.print(table)
