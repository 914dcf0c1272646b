"""A benchmark from settings to results: a document for a file, rows of a table for people."""

import json
import os
import platform
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import transformers

from . import __version__
from .bench import ARMS, SIZES, Arm, Bench, Progress, Sizes, Timing, find_arm, growth_sizes
from .bench_vision import TILES, time_vision
from .configuration_lladav import LladaVConfig
from .files import write_text

DEVICES = ("auto", "cpu", "cuda")
GROWTH_ROUNDS = 2  # growth is about shapes of curves


@dataclass(frozen=True)
class BenchSettings:
    """What is measured.

    Attributes:
        sizes: name of sizes; by default what the device is for.
        arms: names of what is compared; all by default.
        rounds: that count.
        growth: also measure how time grows.
        device: "auto", "cpu" or "cuda".
        command: for the result: how a user began it.
    """

    sizes: str | None = None
    arms: tuple[str, ...] = ()
    rounds: int = 5
    growth: bool = False
    device: str = "auto"
    command: str = "lladav bench"

    def resolve(self) -> tuple[str, Sizes, list[Arm]]:
        """Check everything before anything is made.

        Returns:
            Device, sizes and arms.

        Raises:
            ValueError: for something unknown, with what there is.
        """
        if self.device not in DEVICES:
            raise ValueError(f"device={self.device!r} is not known; choose one of {', '.join(DEVICES)}")
        device = self.device
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        name = self.sizes or ("8b" if device == "cuda" else "small")
        if name not in SIZES:
            raise ValueError(f"sizes={name!r} are not known; choose one of {', '.join(SIZES)}")
        usual = [arm for arm in ARMS if device == "cuda" or not arm.gpu_only]
        return device, SIZES[name], [find_arm(arm) for arm in self.arms] or usual


def run_bench(settings: BenchSettings, on_progress: Callable[[str], Progress]) -> dict[str, Any]:
    """Measure.

    Args:
        settings: what.
        on_progress: gives, for what is being done, a function that is told how far it is.

    Returns:
        Everything that was measured, and on what, as JSON.

    Raises:
        ValueError: for something unknown.
    """
    device, sizes, arms = settings.resolve()
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    bench = Bench(device, dtype, sizes)
    timings = bench.measure(arms, [sizes], settings.rounds, on_progress("Arms in turns"))
    growth = {}
    growing = [arm for arm in ARMS if arm.grows]
    for axis, grown in growth_sizes(sizes).items() if settings.growth else ():
        growth[axis] = bench.measure(growing, grown, GROWTH_ROUNDS, on_progress(f"More {axis}"))
    vision = {}
    if device == "cuda":  # of a CPU, times say nothing
        vision = time_vision(LladaVConfig(), device, dtype, TILES, settings.rounds, on_progress("Vision tower"))
    return {
        "command": settings.command,
        "machine": {
            "processor": platform.machine(), "system": platform.system(), "cores": os.cpu_count(),
            "threads": torch.get_num_threads(), "load": _load(),
            "device": torch.cuda.get_device_name() if device == "cuda" else device,
        },
        "dtype": str(dtype).removeprefix("torch."),
        "versions": {
            "torch": torch.__version__, "transformers": transformers.__version__, "transformers_lladav": __version__
        },
        "rounds": settings.rounds,
        "arms": [{"name": arm.name, "description": arm.description} for arm in arms],
        "timings": [as_json(timing) for timing in timings],
        "growth": {name: [as_json(timing) for timing in found] for name, found in growth.items()},
        "milliseconds": pass_milliseconds(timings) if device == "cuda" else {},
        "vision": vision,
    }  # fmt: skip


def _load() -> list[float] | None:
    """Of the machine in the last 1, 5 and 15 minutes; None on systems that do not tell, such as Windows."""
    return [round(value, 2) for value in os.getloadavg()] if hasattr(os, "getloadavg") else None


def pass_milliseconds(timings: Sequence[Timing]) -> dict[str, float]:
    """What a pass takes, worked out from answers: an exact one is of whole passes, of a fast one only the first is.

    Args:
        timings: of the arms.

    Returns:
        Milliseconds of a whole pass, and of a live one, eager and compiled, as far as there are the arms.
    """
    found = {timing.arm: timing for timing in timings}
    if "exact" not in found:
        return {}
    whole = 1000 * found["exact"].median / found["exact"].forwards
    milliseconds = {"whole": round(whole, 3)}
    for arm, name in (("fast", "live"), ("compiled", "live, compiled")):
        if arm in found:
            timing = found[arm]
            rest = timing.forwards - timing.whole_forwards
            milliseconds[name] = round((1000 * timing.median - whole * timing.whole_forwards) / rest, 3)
    return milliseconds


def as_json(timing: Timing) -> dict[str, Any]:
    """A timing with its median and speed.

    Args:
        timing: the timing.

    Returns:
        JSON.
    """
    seconds = [round(value, 5) for value in timing.seconds]
    derived = {"median": round(timing.median, 5), "tokens_per_second": round(timing.tokens_per_second, 3)}
    return {**asdict(timing), "seconds": seconds, **derived}


def write_document(document: dict[str, Any], path: Path) -> None:
    """Write the document to a file.

    Args:
        document: from `run_bench`.
        path: JSON file; its folder is made.
    """
    write_text(path, json.dumps(document, indent=1) + "\n")


def bench_rows(document: dict[str, Any]) -> list[list[str]]:
    """What the arms took, against the first of them.

    Args:
        document: from `run_bench`.

    Returns:
        A row for each: name, description, passes, those of them over the whole prompt, time or speed, ratio. On a
        CPU, times mean nothing beyond their ratios and are left out.
    """
    descriptions = {arm["name"]: arm["description"] for arm in document["arms"]}
    first = document["timings"][0]["median"]
    rows = []
    for timing in document["timings"]:
        speed = f"{timing['tokens_per_second']:,.1f}" if document["machine"]["device"] != "cpu" else ""
        passes = [str(timing["forwards"]), str(timing["whole_forwards"])]
        ratio = f"{first / timing['median']:.1f}"
        rows.append([timing["arm"], descriptions[timing["arm"]], *passes, speed, ratio])
    return rows
