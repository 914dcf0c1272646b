"""The command that measures speed: `lladav bench`."""

import json
import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from .cli_console import JsonOption, bars, loading, out
from .cli_training import use_threads

HEADINGS = ("", "", "passes", "whole", "tokens/s", "times as fast")


def bench(
    sizes: Annotated[
        str | None,
        typer.Option(help="'8b' for LLaDA-V's own, 'small' for its proportions; by default what suits the device."),
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Times each arm is run, after one that does not count.")] = 5,
    arms: Annotated[str, typer.Option(metavar="NAMES", help="What is compared, with commas; all by default.")] = "",
    growth: Annotated[bool, typer.Option("--growth", help="Also how time grows with answer, prompt, batch.")] = False,
    output: Annotated[Path | None, typer.Option("--output", "-o", metavar="FILE", help="JSON to write.")] = None,
    device: Annotated[str, typer.Option(help="'auto', 'cpu' or 'cuda'.")] = "auto",
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads; all by default.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Measure how fast answers are written, against the official loop and an autoregressive model of the same size.

    Weights are random and made on the spot; nothing is downloaded. On a CPU only ratios mean anything: leave the
    machine alone meanwhile.
    """
    names = tuple(name.strip() for name in arms.split(",") if name.strip())
    with loading(show=False):
        from .bench_run import BenchSettings, bench_rows, run_bench, write_document

        use_threads(threads)
    settings = BenchSettings(sizes, names, rounds, growth, device, shlex.join(["lladav", *sys.argv[1:]]))
    with bars() as begin_bar:
        document = run_bench(settings, begin_bar)
    if output is not None:
        write_document(document, output)
    if as_json:
        print(json.dumps(document))  # noqa: T201
        return
    table = Table(*HEADINGS, box=None, pad_edge=False)
    for row in bench_rows(document):
        table.add_row(*row)
    out.print(table)
    if output is not None:
        out.print(Text(f"Written to {output}"), soft_wrap=True)
