"""Draw the pictures of the site that explain something, as `docs/drawings/*.svg`; `--check` only compares."""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

from draw_answers import draw_noise, draw_schedule, draw_threshold
from draw_caches import draw_caches
from draw_tiles import draw_tiles

FOLDER = Path(__file__).resolve().parent / "drawings"
DRAWINGS: dict[str, Callable[[], str]] = {
    "schedule": draw_schedule,
    "threshold": draw_threshold,
    "noise": draw_noise,
    "caches": draw_caches,
    "tiles": draw_tiles,
}


def stale() -> list[str]:
    """Names of drawings that are not what the code draws now."""
    files = {name: FOLDER / f"{name}.svg" for name in DRAWINGS}
    return [name for name, path in files.items() if not path.exists() or path.read_text("utf-8") != DRAWINGS[name]()]


def main(arguments: list[str] | None = None) -> int:
    """Write or check the drawings.

    Args:
        arguments: command line; that of the process by default.

    Returns:
        0, or 1 if `--check` found a stale drawing.
    """
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing; exit 1 if a drawing is stale")
    only_check = parser.parse_args(arguments).check
    old = stale()
    if only_check:
        return 1 if old else 0
    FOLDER.mkdir(exist_ok=True)
    for name in old:
        (FOLDER / f"{name}.svg").write_text(DRAWINGS[name](), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
