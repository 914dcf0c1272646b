"""Render the tables and the plots of README.md from the result files; `--check` only says whether they are fresh."""

import argparse
import hashlib
import json
import math
import re
import sys
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

from bench_figures import bench_table, draw_bench
from measure_caches import caches_table, intervals_table
from PIL import Image
from testing_tables import (
    ecosystem_table,
    endurance_table,
    faults_table,
    findings_table,
    fuzzing_table,
    overview_table,
)
from twin_figures import draw_twins, masks_table, twin_kinds_table, twins_table

from transformers_lladav.result_tables import (
    RULE_NAMES,
    answering_table,
    conversion_table,
    decoding_table,
    evaluation_table,
    finetuning_table,
    infilling_table,
    memory_table,
    parity_table,
    repeats_table,
    rule_of,
    stages_table,
)
from transformers_lladav.tiny_tower import HEADS

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "model_cards" / "results"
README = ROOT / "README.md"
ASSETS = ROOT / "model_cards" / "assets"
Z_95 = 1.96  # standard deviations to either side that hold 95 % of a normal distribution: how long error bars are


def draw_decoding(document: dict[str, Any], path: Path, mark: str) -> None:
    """Plot right answers and well-formed captions against tokens per forward.

    Args:
        document: written by measure_decoding.py.
        path: PNG file to write.
        mark: kept in the file, to tell whether it is fresh.
    """
    from matplotlib.figure import Figure

    panels = (
        ("test", "exact_match", "questions", "questions answered exactly"),
        ("blended", "well_formed", "samples", "ambiguous captions well formed"),
    )
    short, long = sorted({arm["settings"]["block_length"] for arm in document["arms"]})
    figure = Figure(figsize=(9.6, 4.2), layout="constrained")
    for axes, (part, measure, count, title) in zip(figure.subplots(1, 2), panels, strict=True):
        for (name, label), block in product(RULE_NAMES.items(), (short, long)):
            arms = [arm for arm in document["arms"] if rule_of(arm["settings"])[0] == name]
            arms = [arm[part] for arm in arms if arm["settings"]["block_length"] == block]
            points = sorted((arm["tokens_per_forward"], arm[measure], arm[count]) for arm in arms)
            axes.errorbar(
                [rate for rate, _, _ in points],
                [100 * share for _, share, _ in points],
                [100 * Z_95 * math.sqrt(share * (1 - share) / asked) for _, share, asked in points],
                color=f"C{list(RULE_NAMES).index(name)}",
                linestyle="-" if block == short else ":",
                linewidth=1.4,
                marker="o" if block == short else "s",
                markersize=4,
                elinewidth=0.7,
                label=label if block == short else None,
            )
        axes.set(title=title, xlabel="tokens per forward pass", ylabel="%", ylim=(0, 102))
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    figure.axes[0].legend(frameon=False, loc="lower right", title=f"blocks of {short} (dotted: {long})")
    figure.savefig(path, dpi=150, metadata={"Description": mark})


def draw_finetuning(document: dict[str, Any], path: Path, mark: str) -> None:
    """Plot the loss, and the share of held-out answers that are right, over the steps of each run.

    Args:
        document: written by measure_finetuning.py.
        path: PNG file to write.
        mark: kept in the file, to tell whether it is fresh.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.6, 4.2), layout="constrained")
    losses, shares = figure.subplots(1, 2)
    before = document["before"]["test"]
    for number, (name, arm) in enumerate(document["arms"].items()):
        steps, values = ([point[key] for point in arm["loss"]] for key in ("step", "loss"))
        losses.plot(steps, values, color=f"C{number}", alpha=0.35, linewidth=0.9)
        steps, values = ([point[key] for point in arm["held_out"]] for key in ("step", "loss"))
        losses.plot(steps, values, color=f"C{number}", marker="o", markersize=4, label=name)
        values = [100 * point["exact_match"] for point in arm["held_out"]]
        start = 100 * before["correct"] / before["questions"]
        shares.plot([0, *steps], [start, *values], color=f"C{number}", marker="o", markersize=4, label=name)
    losses.set(title="loss, held-out (faint: in training)", xlabel="step", ylabel="nats", yscale="log")
    shares.set(title="held-out pictograms answered exactly", xlabel="step", ylabel="%", ylim=(-2, 102))
    for axes in (losses, shares):
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    shares.legend(frameon=False, loc="lower right")
    figure.savefig(path, dpi=150, metadata={"Description": mark})


def draw_stages(document: dict[str, Any], path: Path, mark: str) -> None:
    """Plot the loss of the small model's stages over the CPU time since the start, and what the tower names.

    Args:
        document: the stages.json of `lladav train tiny`.
        path: PNG file to write.
        mark: kept in the file, to tell whether it is fresh.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.6, 4.2), layout="constrained")
    seen, losses = figure.subplots(1, 2, width_ratios=(1, 2))
    tower, *others = document["stages"]
    for name in (head for head in HEADS if head != "place"):  # which is the same in every picture
        points = [(point["cpu_seconds"] / 60, 100 * point[name]) for point in tower["curve"]]
        seen.plot(*zip(*points, strict=True), linewidth=1.4, label=name)
    seen.set(title="tower: patches named right", xlabel="CPU minutes", ylabel="%", ylim=(0, 102))
    seen.legend(frameon=False, loc="lower right")
    begun = tower["cpu_seconds"] / 60
    for stage in others:
        points = [(begun + point["cpu_seconds"] / 60, point["loss"]) for point in stage["curve"]]
        losses.plot(*zip(*points, strict=True), linewidth=1.2, label=stage["name"])
        begun += stage["cpu_seconds"] / 60
    losses.set(title="loss of the other stages", xlabel="CPU minutes since the start", ylabel="nats")
    losses.set(yscale="log", ylim=(0.08, 3))  # a new form of text begins far above
    losses.legend(frameon=False, ncols=2)
    for axes in (seen, losses):
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150, metadata={"Description": mark})


PLOTS: dict[str, Callable[[dict[str, Any], Path, str], None]] = {
    "decoding": draw_decoding,
    "finetuning": draw_finetuning,
    "stages": draw_stages,
    "twins": draw_twins,
    "bench": draw_bench,
}


def plot_mark(name: str) -> str:
    """A fingerprint of what a plot is drawn from.

    Args:
        name: of the result file.

    Returns:
        Its SHA-256.
    """
    return hashlib.sha256((RESULTS / f"{name}.json").read_bytes()).hexdigest()


def plot_is_fresh(name: str) -> bool:
    """Whether a plot was drawn from the result file that is there.

    Args:
        name: of the result file.

    Returns:
        False also if there is no plot.
    """
    path = ASSETS / f"{name}.png"
    if not path.exists():
        return False
    with Image.open(path) as picture:
        return bool(picture.info.get("Description") == plot_mark(name))


def read_result(name: str) -> Any:
    """A result file.

    Args:
        name: its name without the ending.

    Returns:
        The document.
    """
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


TABLES = {
    "parity": ("parity", parity_table),
    "evaluation": ("evaluation", evaluation_table),
    "stages": ("stages", stages_table),
    "decoding": ("decoding", decoding_table),
    "infilling": ("decoding", infilling_table),
    "repeats": ("decoding", repeats_table),
    "conversion": ("conversion", conversion_table),
    "memory": ("training_memory", memory_table),
    "answering": ("training_memory", answering_table),
    "finetuning": ("finetuning", finetuning_table),
    "twins": ("twins", twins_table),
    "twin_kinds": ("twins", twin_kinds_table),
    "masks": ("twins", masks_table),
    "bench": ("bench", bench_table),
    "caches": ("caches", caches_table),
    "intervals": ("caches", intervals_table),
    "testing": ("testing", overview_table),
    "ecosystem": ("ecosystem", ecosystem_table),
    "fuzzing": ("fuzzing", fuzzing_table),
    "findings": ("fuzzing", findings_table),
    "faults": ("faults", faults_table),
    "endurance": ("endurance", endurance_table),
}


def render(text: str) -> str:
    """Fill every `<!-- table: NAME -->` ... `<!-- end -->` block from its result file.

    Args:
        text: the document.

    Returns:
        The document with fresh tables.
    """

    def fill(match: re.Match[str]) -> str:
        result, table = TABLES[match["name"]]
        return f"<!-- table: {match['name']} -->\n{table(read_result(result))}\n<!-- end -->"

    return re.sub(r"<!-- table: (?P<name>\w+) -->\n.*?<!-- end -->", fill, text, flags=re.DOTALL)


def main(arguments: list[str] | None = None) -> int:
    """Render or check the README.

    Args:
        arguments: command line; that of the process by default.

    Returns:
        0, or 1 if `--check` found a stale table or plot.
    """
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing; exit 1 if a table is stale")
    options = parser.parse_args(arguments)
    text = README.read_text(encoding="utf-8")
    fresh = render(text)
    stale = [name for name in PLOTS if f"assets/{name}.png" in text and not plot_is_fresh(name)]
    if options.check:
        return 0 if fresh == text and not stale else 1
    for name in stale:
        PLOTS[name](read_result(name), ASSETS / f"{name}.png", plot_mark(name))
    README.write_text(fresh, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
