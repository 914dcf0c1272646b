"""What the conversion scripts share: options, a progress bar, errors as exit codes."""

import argparse
import math
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from transformers_lladav.weights import MAX_SHARD_BYTES, Advance

INTERRUPTED = 130
FAILED = 1


def run(command: Callable[[list[str] | None], int], argv: list[str] | None = None) -> int:
    """Run a script; what users can put right is reported without a trace, and a signal still cleans up.

    Args:
        command: takes the arguments, returns the exit code.
        argv: arguments without the program's name; those of the process by default.

    Returns:
        The exit code: 1 with the reason on standard error, 130 if interrupted.
    """
    previous = signal.signal(signal.SIGTERM, _interrupt)
    try:
        return command(argv)
    except (ValueError, TypeError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return FAILED
    except KeyboardInterrupt:
        print("interrupted; no half-written folder is left, run it again to start anew", file=sys.stderr)
        return INTERRUPTED
    finally:
        signal.signal(signal.SIGTERM, previous)


def _interrupt(*_: Any) -> None:
    raise KeyboardInterrupt


@contextmanager
def progress_bar(title: str, total: int) -> Iterator[Advance]:
    """A bar with size, speed and time left on standard error.

    Args:
        title: what is going on.
        total: bytes until it is done.

    Yields:
        A function that takes the bytes just done.
    """
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, TextColumn("left:"), TimeRemainingColumn(), console=Console(stderr=True)) as progress:
        task = progress.add_task(title, total=total)
        yield lambda done: progress.advance(task, done)


def add_source_options(parser: argparse.ArgumentParser, what: str) -> None:
    """Options of a script that reads one checkpoint.

    Args:
        parser: gets `--source` and `--revision`.
        what: the kind of checkpoint.
    """
    parser.add_argument("--source", required=True, help=f"folder or Hub id of {what}")
    parser.add_argument("--revision", help="branch, tag or commit of a Hub id")


def add_output_options(parser: argparse.ArgumentParser) -> None:
    """Options of every script that writes a checkpoint.

    Args:
        parser: gets `--output`, `--dtype`, `--max-shard-size` and `--dry-run`.
    """
    parser.add_argument("--output", type=Path, help="folder to make; must not exist or be empty")
    parser.add_argument(
        "--dtype",
        choices=("keep", "bfloat16", "float16", "float32"),
        default="keep",
        help="type of the written tensors (default: keep each as it is)",
    )
    parser.add_argument(
        "--max-shard-size",
        type=float,
        default=MAX_SHARD_BYTES / 1e9,
        metavar="GB",
        help="size of the largest weight file, and with it the memory needed (default: %(default)s)",
    )
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="print the plan and every key and write nothing; of a Hub id only headers are downloaded",
    )


def parse(parser: argparse.ArgumentParser, argv: list[str] | None) -> argparse.Namespace:
    """Parse a command line with output options.

    Args:
        parser: the parser.
        argv: arguments without the program's name; those of the process by default.

    Returns:
        The arguments; there is an output, or it is a dry run.
    """
    arguments = parser.parse_args(argv)
    if arguments.output is None and not arguments.dry_run:
        parser.error("--output is required, unless it is a --dry-run")
    return arguments


def chosen_dtype(arguments: argparse.Namespace) -> torch.dtype | None:
    """The type of `--dtype`, or None to keep each tensor's own."""
    return None if arguments.dtype == "keep" else getattr(torch, arguments.dtype)


def chosen_shard_bytes(arguments: argparse.Namespace) -> int:
    """The bytes of `--max-shard-size`.

    Raises:
        ValueError: if it is not a finite number above 0.
    """
    if not 0 < arguments.max_shard_size < math.inf:
        raise ValueError(f"--max-shard-size {arguments.max_shard_size} must be a finite size in GB above 0")
    return int(arguments.max_shard_size * 1e9)
