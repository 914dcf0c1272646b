"""What the commands share: where they print, and options that several of them have."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

out, err = Console(), Console(stderr=True)

ModelOption = Annotated[
    str | None, typer.Option("--model", "-m", help="Folder or Hub id of a checkpoint; by default the bundled one.")
]
DeviceOption = Annotated[str, typer.Option(help="'auto', 'cpu', 'cuda', 'cuda:1', 'mps' ...")]
QuantizationOption = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="Hold the language model in nf4, int8, int8-weight-only or int4-weight-only."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")]
CodeOption = Annotated[bool, typer.Option("--trust-remote-code", help="Run code that the checkpoint brings along.")]

OutputOption = Annotated[
    Path, typer.Option("--output", "-o", metavar="DIR", help="Folder of the results; the same command goes on there.")
]
FolderOption = Annotated[
    Path | None, typer.Option("--image-folder", metavar="DIR", help="Where pictures lie; beside FILE by default.")
]
OutsideOption = Annotated[bool, typer.Option("--allow-outside", help="Let records name files outside that folder.")]
UrlsOption = Annotated[bool, typer.Option("--allow-urls", help="Fetch pictures that are http(s) URLs.")]
QuestionOption = Annotated[
    str | None, typer.Option("--question", metavar="TEXT", help="Asked where a record has only an answer.")
]


@contextmanager
def bars() -> Iterator[Callable[[str], Callable[[int, int], None]]]:
    """Bars for what takes long, on terminals alone.

    Yields:
        A function that begins a bar, given what is being done; it gives one that is told how much is done of how much.
    """
    columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    name = TextColumn("{task.description}")
    with Progress(name, *columns, console=err, transient=True, disable=not err.is_terminal) as progress:

        def begin(what: str) -> Callable[[int, int], None]:
            task = progress.add_task(what, total=None)
            return lambda done, total: progress.update(task, completed=done, total=total)

        yield begin


@contextmanager
def loading(show: bool = True) -> Iterator[None]:
    """One status line on a terminal in place of the bars of transformers."""
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    if not show:
        yield
        return
    with err.status("Loading the model ..."):
        yield
