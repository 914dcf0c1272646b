"""The command that runs the paper's benchmarks: `lladav paper-table`."""

import shlex
from typing import Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from .cli_console import DeviceOption, OutputOption, out

CheckpointOption = Annotated[str, typer.Option("--model", "-m", metavar="MODEL", help="Folder or Hub id of LLaDA-V.")]
TasksOption = Annotated[
    list[str], typer.Option("--tasks", "-t", metavar="NAME", help="A benchmark of the paper; repeatable. All of them.")
]
ProcessesOption = Annotated[int, typer.Option(min=1, metavar="N", help="Processes that share the questions.")]
BatchOption = Annotated[int, typer.Option(min=1, metavar="N", help="Questions that a process answers together.")]
LimitOption = Annotated[
    int | None, typer.Option(min=1, metavar="N", help="Questions of each task, to try it out; by default all.")
]
DryOption = Annotated[
    bool,
    typer.Option("--dry-run", help="Print what would be run, and check that it can; no download."),
]


def paper_table(
    model: CheckpointOption,
    output: OutputOption,
    tasks: TasksOption = [],  # noqa: B006 typer copies it
    num_processes: ProcessesOption = 1,
    batch_size: BatchOption = 1,
    limit: LimitOption = None,
    device: DeviceOption = "auto",
    dry_run: DryOption = False,
) -> None:
    """Run the benchmarks of the LLaDA-V paper with lmms-eval, and set the scores beside those that the paper reports.

    Each is answered with the paper's settings. What is done is not run again when the command is repeated.
    """
    from .paper_table import TABLES, PaperTable, find_benchmarks, plan, run

    table = PaperTable(model, output, find_benchmarks(tasks), num_processes, batch_size, limit, device)
    if dry_run:
        _print_plan(table, plan(table))
        return
    rows = run(table, lambda text: out.print(Text(text), soft_wrap=True))
    _print_rows(rows, limit)
    out.print(Text(f"The table is in {output / TABLES[1]} and {output / TABLES[0]}"), soft_wrap=True)
    if any(row.measured is None for row in rows):
        raise typer.Exit(1)


def _print_plan(table: Any, rows: list[Any]) -> None:
    for row in rows:
        name = row.benchmark.name
        state = "the result is there" if row.earlier else row.problem or "would be run"
        out.print(Text.assemble((f"{name}: ", "bold"), state), soft_wrap=True)
        out.print(Text(f"  {row.settings.describe()}; {row.benchmark.metric}"), soft_wrap=True)
        if not row.earlier:
            command = shlex.join(table.command(row.benchmark, table.output / name))
            out.print(Text(f"  {command}", style="dim"), soft_wrap=True)


def _print_rows(rows: list[Any], limit: int | None) -> None:
    table = Table("benchmark", "questions", "measured", "reported by the paper", "", box=None, pad_edge=False)
    for row in rows:
        figures = [
            f"{score:.1f}" if score is not None else "" for score in (row.measured, row.benchmark.paper_score())
        ]
        table.add_row(row.benchmark.name, str(row.questions or ""), *figures, Text(row.remark))
    out.print(table)
    if limit:
        out.print(f"Only the first {limit} questions of each task: these figures compare with none.", style="yellow")
