"""The command that evaluates: `lladav eval`, on the suite or on people's own questions."""

import json
import shlex
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import groupby
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from .cli_asking import BlockOption, LengthOption, PresetOption, StepsOption, ThresholdOption
from .cli_console import (
    CodeOption,
    DeviceOption,
    FolderOption,
    JsonOption,
    OutputOption,
    OutsideOption,
    QuantizationOption,
    QuestionOption,
    UrlsOption,
    bars,
    err,
    loading,
    out,
)

ModelArgument = Annotated[
    str | None, typer.Argument(metavar="MODEL", help="Folder or Hub id of a checkpoint; by default the bundled one.")
]
AdapterOption = Annotated[
    str | None, typer.Option(metavar="DIR", help="A LoRA adapter; without MODEL, on the model it was trained on.")
]
TasksOption = Annotated[
    list[str],
    typer.Option(
        "--tasks",
        "-t",
        metavar="TASK|FILE",
        help="'suite', a split of it (suite:test), some kinds of a split (suite:test/count,ocr), or JSON, JSON lines, "
        "CSV, TSV or a folder of your own; repeatable.",
    ),
]
MetricOption = Annotated[
    str | None,
    typer.Option(
        help="exact_match, anls, relaxed_accuracy, choice (by likelihood) or letter; by default what a record says, "
        "else choice where it has choices, else exact_match."
    ),
]
IgnoreOption = Annotated[
    str,
    typer.Option(metavar="NAMES", help="What exact match does not look at, such as case,dot,articles."),
]
LimitOption = Annotated[
    int | None, typer.Option(min=1, help="Questions per task; by default all of a file, 160 per kind of the suite.")
]
BlindOption = Annotated[
    bool, typer.Option("--blind", help="Ask every question also about the pictures of another of its kind.")
]
BatchOption = Annotated[int, typer.Option(min=1, help="Questions that are answered together.")]
SetOption = Annotated[
    list[str],
    typer.Option("--set", metavar="NAME=VALUE", help="Any other setting of `generate`: temperature=0.5; repeatable."),
]
SeedOption = Annotated[int, typer.Option(help="Of sampling, and of the masks of choices.")]
SamplesOption = Annotated[int, typer.Option(min=1, help="Masks drawn per choice, for the metric choice.")]
SheetOption = Annotated[
    int | None, typer.Option(min=1, metavar="N", help="Save sheet.png with N pictures and answers, wrong ones first.")
]


def evaluate(
    model: ModelArgument = None,
    tasks: TasksOption = ["suite"],  # noqa: B006
    output: OutputOption = Path("runs/evaluation"),
    adapter: AdapterOption = None,
    metric: MetricOption = None,
    ignore: IgnoreOption = "",
    limit: LimitOption = None,
    blind: BlindOption = False,
    batch_size: BatchOption = 32,
    sheet: SheetOption = None,
    preset: PresetOption = None,
    max_new_tokens: LengthOption = None,
    block_length: BlockOption = None,
    steps: StepsOption = None,
    threshold: ThresholdOption = None,
    change: SetOption = [],  # noqa: B006
    seed: SeedOption = 0,
    samples: SamplesOption = 128,
    image_folder: FolderOption = None,
    allow_outside: OutsideOption = False,
    allow_urls: UrlsOption = False,
    question: QuestionOption = None,
    device: DeviceOption = "auto",
    quantization: QuantizationOption = None,
    trust_remote_code: CodeOption = False,
    as_json: JsonOption = False,
) -> None:
    """Ask a MODEL the suite's questions or your own, rate the answers, and write them down as they come.

    A record of your own ends with the expected answer; it may also have "answers", "choices", "metric", "kind", "mark"
    and "id". An interrupted evaluation goes on when the command is repeated. For several GPUs:
    accelerate launch --num_processes 2 -m transformers_lladav eval ...
    """
    given = {"max_new_tokens": max_new_tokens, "block_length": block_length, "max_denoising_steps": steps}
    generation = generation_settings({**given, "threshold": threshold}, change)
    with loading(show=False), _plain_warnings():
        from .eval_asking import Asking
        from .eval_metrics import Ignored
        from .eval_run import EvalSettings, run_evaluation
        from .eval_tasks import ReadOptions

        ignored = Ignored.named([name.strip() for name in ignore.split(",") if name.strip()])
        settings = EvalSettings(
            output=output, tasks=tuple(tasks), model=model, adapter=adapter, metric=metric, limit=limit, blind=blind,
            how=Asking(generation, preset, seed, samples, batch_size, ignored),
            read=ReadOptions(image_folder, allow_outside, allow_urls, question),
            device=device, trust_remote_code=trust_remote_code, quantization=quantization,
            command=shlex.join(["lladav", *sys.argv[1:]]),
        )  # fmt: skip
        with bars() as begin_bar:
            outcome = run_evaluation(settings, begin_bar)
    if outcome is not None:  # the first process
        _print_outcome(outcome, output, sheet, as_json)


def generation_settings(given: dict[str, Any], changes: list[str]) -> dict[str, Any]:
    """Settings of `generate` that a user chose.

    Args:
        given: options of their own; None for those that were left out.
        changes: values of --set, read as JSON, or as text where that fails; "none" is null.

    Returns:
        The settings.

    Raises:
        ValueError: for a --set that sets nothing or what is given already.
    """
    settings = {name: value for name, value in given.items() if value is not None}
    for change in changes:
        name, separator, text = change.partition("=")
        if not separator or not name.strip():
            raise ValueError(f"--set {change} sets nothing; give NAME=VALUE, such as --set temperature=0.5")
        if name.strip() in settings:
            raise ValueError(f"{name.strip()} was given twice; give it once")
        try:
            settings[name.strip()] = None if text.strip().lower() == "none" else json.loads(text)
        except json.JSONDecodeError:
            settings[name.strip()] = text
    return settings


@contextmanager
def _plain_warnings() -> Iterator[None]:
    """Warnings for users as a line each."""

    def show(message: Warning | str, category: type[Warning], *where: Any, **more: Any) -> None:
        err.print(Text.assemble(("Warning: ", "yellow"), str(message)), soft_wrap=True)

    with warnings.catch_warnings():
        warnings.showwarning = show
        yield


def _print_outcome(outcome: Any, output: Path, sheet: int | None, as_json: bool) -> None:
    from .eval_results import save_sheet

    if sheet is not None:
        save_sheet(output / "sheet.png", outcome.tasks, outcome.answers, sheet)
    if as_json:
        print(json.dumps(outcome.document, ensure_ascii=False))  # noqa: T201
        return
    for name, group in groupby(outcome.rows, key=lambda row: row.task):
        _print_table(name, list(group))
    what = "This evaluation had ended before; its results are in" if outcome.earlier else "Results and answers are in"
    out.print(Text(f"{what} {output}"), soft_wrap=True)


def _print_table(task: str, rows: list[Any]) -> None:
    """One task's results; the metric stands in the title where there is only one."""
    from .eval_results import shown_columns
    from .record_files import printable

    metrics = {row.metric for row in rows}
    title = f"{task}: {metrics.pop()}" if len(metrics) == 1 else task
    hidden = ("task", "metric") if not metrics else ("task",)
    shown = [column for column in shown_columns(rows) if column not in hidden]
    table = Table(title=Text(title, style="bold"), title_justify="left", box=None, pad_edge=False)
    for column in shown:
        header = column.replace("wrong ", "wrong\n").replace("per ", "per\n")
        table.add_column(header, justify="left" if column in ("kind", "metric") else "right", no_wrap=True)
    for row in rows:
        table.add_row(*(Text(printable(row.cells[column])) for column in shown))
    out.print(table)
