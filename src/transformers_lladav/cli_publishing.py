"""The command that publishes a folder on the Hub: `lladav push`."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.progress import Progress
from rich.table import Table
from rich.text import Text

from .cli_console import err, loading, out


def push(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A native checkpoint or a PEFT adapter.")],
    repo: Annotated[str, typer.Argument(metavar="REPO", help="OWNER/NAME on the Hub; made if it does not exist.")],
    private: Annotated[bool, typer.Option("--private", help="Make a new repository private.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check and list what would be uploaded; needs no network.")
    ] = False,
    revision: Annotated[str | None, typer.Option(metavar="BRANCH", help="Branch; made if it does not exist.")] = None,
    message: Annotated[str | None, typer.Option(help="Message of the commit.")] = None,
    create_pr: Annotated[bool, typer.Option("--create-pr", help="Open a pull request instead of pushing.")] = False,
    base_model: Annotated[
        str | None, typer.Option(metavar="ID", help="Hub id of an adapter's base model, if its folder has a path.")
    ] = None,
) -> None:
    """Check the folder DIR, add what it lacks (code, model card), and upload it to REPO in one commit."""
    with loading(show=False):
        from huggingface_hub.utils import enable_progress_bars

        from . import pushing
    with _checking() as progress:
        upload = pushing.plan_upload(folder, repo, base_model, progress)
    _print_findings(upload.checked)
    if dry_run:
        _print_files(upload)
    _print_left_out(upload)
    if upload.checked.errors:
        err.print("Nothing was uploaded: put the errors right first.")
        raise typer.Exit(2)
    if dry_run:
        out.print("Nothing was uploaded (--dry-run).")
        return
    enable_progress_bars()
    published = pushing.push(upload, private, revision, message, create_pr)
    out.print(Text(f"Published: {published.address}"), soft_wrap=True)
    if published.removed:
        out.print(Text(f"Removed, from an earlier upload: {', '.join(published.removed)}"), soft_wrap=True)


@contextmanager
def _checking() -> Iterator[Callable[[int, int], None]]:
    """A bar while tensors are read."""
    with Progress(console=err, transient=True) as bar:
        task = bar.add_task("Checking", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def _print_findings(checked: Any) -> None:
    levels = {"ok": checked.passed, "warning": checked.warnings, "error": checked.errors}
    for level, style in (("ok", "green"), ("warning", "yellow"), ("error", "red")):
        for text in levels[level]:
            err.print(Text.assemble((f"{level:>8}  ", style), text), soft_wrap=True)


def _print_files(upload: Any) -> None:
    table = Table("file", "bytes", "from", box=None, pad_edge=False)
    table.columns[1].justify = "right"
    for file in upload.files:
        table.add_row(Text(file.name), f"{file.size:,}", {"folder": "the folder"}.get(file.origin, file.origin))
    out.print(table)
    out.print(f"{len(upload.files)} files, {upload.size:,} bytes to {upload.repo_id}")


def _print_left_out(upload: Any) -> None:
    for name, reason in upload.left_out.items():
        err.print(Text.assemble(("left out  ", "dim"), f"{name}: {reason}"), soft_wrap=True)
