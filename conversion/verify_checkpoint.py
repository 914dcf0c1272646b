"""Check a checkpoint folder, and compare it with another one.

    python conversion/verify_checkpoint.py LLaDA-V-hf
    python conversion/verify_checkpoint.py LLaDA-V-hf --against LLaDA-V

Exit code 0: nothing wrong; 1: something is wrong or different; 2: it could not be checked, or the report not written.
"""

import argparse
import hashlib
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

from command_line import run
from transformers_lladav.comparison import Comparison, compare
from transformers_lladav.files import write_text
from transformers_lladav.verification import Report, verify
from transformers_lladav.weights import LISTED, read_json

FAILED, NOT_CHECKED = 1, 2
MARKS = {"ok": "[green]ok     [/]", "warning": "[yellow]warning[/]", "error": "[bold red]ERROR  [/]"}


def overall_digest(digests: dict[str, str]) -> str:
    """One sha256 for all tensors: of the lines "digest  name", sorted by name."""
    lines = "".join(f"{digests[name]}  {name}\n" for name in sorted(digests))
    return hashlib.sha256(lines.encode()).hexdigest()


def print_report(report: Report, console: Console, each_tensor: bool) -> None:
    """Print what was found, errors of a kind up to a screenful.

    Args:
        report: what was found.
        console: where to print.
        each_tensor: whether the digest of every tensor is printed.
    """
    console.print(f"{escape(str(report.folder))}: {report.layout} layout", highlight=False)
    shown: dict[tuple[str, str], int] = {}
    for finding in report.findings:
        kind = (finding.level, finding.topic)
        shown[kind] = shown.get(kind, 0) + 1
        if shown[kind] <= LISTED:
            line = f"  {MARKS[finding.level]} {finding.topic}: {escape(finding.text)}"
            console.print(line, highlight=False, soft_wrap=True)
    for (level, topic), count in shown.items():
        if count > LISTED:
            console.print(f"  {MARKS[level]} {topic}: {count - LISTED} more; --json lists all", highlight=False)
    if each_tensor:
        for name, digest in report.digests.items():
            console.print(f"  {digest}  {name}", markup=False, highlight=False, soft_wrap=True)
    if report.digests:
        overall = overall_digest(report.digests)
        console.print(f"  sha256 of all {len(report.digests)} tensors: {overall}", highlight=False, soft_wrap=True)


def print_comparison(comparisons: list[Comparison], other: Path, console: Console) -> None:
    """Print in what two folders differ, up to a screenful.

    Args:
        comparisons: all of them.
        other: what was compared with.
        console: where to print.
    """
    different = [comparison for comparison in comparisons if not comparison.equal]
    if not different:
        text = f"all {len(comparisons)} tensors have the same bytes"
        console.print(f"against {escape(str(other))}: {text}", highlight=False, soft_wrap=True)
        return
    text = f"{len(different)} of {len(comparisons)} tensors differ"
    console.print(f"against {escape(str(other))}: {text}", highlight=False, soft_wrap=True)
    for comparison in different[:LISTED]:
        line = f"  [bold red]DIFFERS[/] {escape(f'{comparison.name}: {comparison.text}')}"
        console.print(line, highlight=False, soft_wrap=True)
    if len(different) > LISTED:
        console.print(f"  ... and {len(different) - LISTED} more; --json lists all", highlight=False)


def as_json(report: Report, comparisons: list[Comparison], other: Path | None) -> dict[str, Any]:
    """Everything as a document.

    Args:
        report: what was found.
        comparisons: with the other folder.
        other: the other folder, if there is one.

    Returns:
        What `--json` writes.
    """
    document: dict[str, Any] = {
        "folder": str(report.folder),
        "layout": report.layout,
        "errors": len(report.errors),
        "warnings": len(report.warnings),
        "findings": [vars(finding) for finding in report.findings],
        "sha256": overall_digest(report.digests),
        "tensors": report.digests,
    }
    if other is not None:
        document["against"] = {
            "folder": str(other),
            "equal": all(comparison.equal for comparison in comparisons),
            "tensors": [vars(comparison) for comparison in comparisons],
        }
    return document


@contextmanager
def watched(title: str) -> Iterator[Any]:
    """A progress bar on standard error.

    Args:
        title: what is going on.

    Yields:
        A function that takes the bytes done and all bytes.
    """
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(title, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)


def main(argv: list[str] | None = None) -> int:
    """The command line.

    Args:
        argv: arguments without the program's name; those of the process by default.

    Returns:
        0 if nothing is wrong, 1 if something is, 2 if it could not be checked or the report could not be written.
    """
    parser = argparse.ArgumentParser(
        prog="verify_checkpoint.py",
        description="Check tensors (names, shapes, types, finite values), token ids, chat template, auto_map and code "
        "files of a checkpoint folder, native or official, and print a sha256 of its tensors that does not depend on "
        "layout or file sizes. Nothing from the folder is executed.",
        epilog="Exit code 0: nothing wrong (warnings allowed); 1: something wrong, or different from --against; "
        "2: it could not be checked, or FILE not written.",
    )
    parser.add_argument("folder", type=Path, metavar="DIR", help="the checkpoint")
    parser.add_argument("--against", type=Path, metavar="DIR", help="another one, in any layout, to compare with")
    parser.add_argument(
        "--vision-config",
        type=Path,
        metavar="FILE",
        help="SigLIP config.json (or its folder) for an official folder whose vision tower is not SigLIP2-so400m",
    )
    parser.add_argument("--tensors", action="store_true", help="print the sha256 of every tensor")
    parser.add_argument("--strict", action="store_true", help="count warnings as errors")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything to a file")
    arguments = parser.parse_args(argv)
    comparisons: list[Comparison] = []
    try:
        report = _verify(arguments.folder, arguments.vision_config)
        if arguments.against is not None:
            with watched("comparing") as progress:
                comparisons = list(compare(arguments.folder, arguments.against, progress))
    except (OSError, ValueError) as error:
        return _not_checked(error)
    console = Console()
    print_report(report, console, arguments.tensors)
    if arguments.against is not None:
        print_comparison(comparisons, arguments.against, console)
    if arguments.json is not None:
        document = json.dumps(as_json(report, comparisons, arguments.against), indent=1)
        try:
            write_text(arguments.json, document + "\n")
        except OSError as error:
            return _not_checked(error)
    wrong = report.errors or (arguments.strict and report.warnings)
    return FAILED if wrong or not all(comparison.equal for comparison in comparisons) else 0


def _not_checked(error: Exception) -> int:
    print(f"error: {error}", file=sys.stderr)
    return NOT_CHECKED


def _verify(folder: Path, vision_config: Path | None) -> Report:
    problems: list[str] = []
    if vision_config is not None and vision_config.is_dir():
        vision_config = vision_config / "config.json"
    vision = None if vision_config is None else read_json(vision_config, problems)
    if problems:
        raise ValueError("\n".join(problems))
    with watched("checking") as progress:
        return verify(folder, vision, progress)


if __name__ == "__main__":
    sys.exit(run(main))
