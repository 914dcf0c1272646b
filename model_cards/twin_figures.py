"""Tables and plot of the comparison of masked diffusion with its autoregressive twin, from results/twins.json."""

from collections.abc import Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

# Group and mode of an arm, as they are called in tables and plots.
WAYS = {
    ("diffusion", "one token per pass"): "masked diffusion, a token per pass",
    ("diffusion", "threshold 0.9"): "masked diffusion, threshold 0.9",
    ("autoregressive", "one token per pass"): "autoregressive",
}
MASKS = {"diffusion": "bidirectional", "conversation_mask": "no turn sees a later one"}


def arms_of(document: dict[str, Any], group: str, samples: int) -> list[dict[str, Any]]:
    """The runs of one group and size.

    Args:
        document: written by measure_twins.py.
        group: "diffusion", "autoregressive" or "conversation_mask".
        samples: dialogues they learned from.

    Returns:
        A run for each seed.
    """
    twin = "diffusion" if group == "conversation_mask" else group
    masked = group == "conversation_mask"
    return [
        arm
        for arm in document["arms"]
        if (arm["twin"], arm["samples"], arm["conversation_mask"]) == (twin, samples, masked)
    ]


def sizes_of(document: dict[str, Any]) -> list[int]:
    """Numbers of dialogues that were learned from, smallest first."""
    return sorted({arm["samples"] for arm in document["arms"]})


def shares(arms: Sequence[dict[str, Any]], mode: str, asked: str = "test") -> list[float]:
    """Exact match of each run.

    Args:
        arms: of one group and size.
        mode: how answers were written.
        asked: "test" or "dialogues".

    Returns:
        0 to 1 each.
    """
    found = [arm["answered"][asked][mode] for arm in arms]
    return [counts["correct"] / counts["questions"] for counts in found]


def passes(arms: Sequence[dict[str, Any]], mode: str) -> float:
    """Forward passes per answer, over all runs.

    Args:
        arms: of one group and size.
        mode: how answers were written.

    Returns:
        The mean.
    """
    found = [arm["answered"]["test"][mode] for arm in arms]
    return sum(counts["passes"] for counts in found) / sum(counts["questions"] for counts in found)


def spread(values: Sequence[float]) -> float:
    """Standard deviation between runs; 0 for a single one."""
    return stdev(values) if len(values) > 1 else 0.0


def _share_text(values: Sequence[float]) -> str:
    return f"{mean(values):.1%} ± {100 * spread(values):.1f}"


def twins_table(document: dict[str, Any]) -> str:
    """Exact match and forward passes of both twins by data size.

    Args:
        document: written by measure_twins.py.

    Returns:
        A Markdown table.
    """
    rows = [
        f"| dialogues | {' | '.join(f'{name} | passes' for name in WAYS.values())} |",
        "|---:|" + "---:|---:|" * len(WAYS),
    ]
    for size in sizes_of(document):
        cells = []
        for group, mode in WAYS:
            arms = arms_of(document, group, size)
            cells += [_share_text(shares(arms, mode)), f"{passes(arms, mode):.2f}"]
        rows.append(f"| {size:,} | {' | '.join(cells)} |")
    settings, bases = document["settings"], document["bases"]
    largest = arms_of(document, "diffusion", sizes_of(document)[-1])
    trained = sum(sum(arm["cpu_seconds"].values()) for arm in document["arms"])
    trained += sum(base["cpu_seconds"] for base in bases.values())
    rows.append(
        f"\nExact match on {settings['questions']} questions of the test split, mean and standard deviation of "
        f"{len(largest)} runs that differ in order and noise, and forward passes per answer. Language model of "
        f"{document['language_model_parameters']:,} parameters; {settings['base_steps']:,} steps on facts for each "
        f"twin's base, {settings['steps']:,} steps for every run; {trained / 3600:.1f} CPU hours in all. "
        f"`{document['command']}`."
    )
    return "\n".join(rows)


def masks_table(document: dict[str, Any]) -> str:
    """What the mask over turns changes.

    Args:
        document: written by measure_twins.py.

    Returns:
        A Markdown table.
    """
    size, mode = sizes_of(document)[-1], "one token per pass"
    rows = ["| attention in training | first questions | questions that follow on another |", "|---|---:|---:|"]
    for group, name in MASKS.items():
        arms = arms_of(document, group, size)
        rows.append(f"| {name} | {_share_text(shares(arms, mode))} | {_share_text(shares(arms, mode, 'dialogues'))} |")
    settings = document["settings"]
    rows.append(
        f"\n{settings['questions']} first questions and {settings['dialogue_questions']} others, {size:,} dialogues, "
        f"a token per pass."
    )
    return "\n".join(rows)


def twin_kinds_table(document: dict[str, Any]) -> str:
    """Exact match of both twins by kind of question, after the most dialogues.

    Args:
        document: written by measure_twins.py.

    Returns:
        A Markdown table.
    """
    size, mode = sizes_of(document)[-1], "one token per pass"
    found = {group: arms_of(document, group, size) for group in ("autoregressive", "diffusion")}
    kinds = list(found["diffusion"][0]["answered"]["test"][mode]["kinds"])
    rows = ["| " + " | ".join(["", *kinds]) + " |", "|---|" + "---:|" * len(kinds)]
    for group, arms in found.items():
        cells = []
        for kind in kinds:
            counts = [arm["answered"]["test"][mode]["kinds"][kind] for arm in arms]
            right = sum(count["correct"] for count in counts)
            cells.append(f"{right / sum(count['questions'] for count in counts):.0%}")
        rows.append(f"| {WAYS[group, mode]} | {' | '.join(cells)} |")
    return "\n".join(rows)


def draw_twins(document: dict[str, Any], path: Path, mark: str) -> None:
    """Plot exact match over the number of dialogues, with the spread of the runs, and passes per answer.

    Args:
        document: written by measure_twins.py.
        path: PNG file to write.
        mark: kept in the file, to tell whether it is fresh.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.6, 4.2), layout="constrained")
    right, cost = figure.subplots(1, 2)
    sizes = sizes_of(document)
    for number, ((group, mode), label) in enumerate(WAYS.items()):
        found = [shares(arms_of(document, group, size), mode) for size in sizes]
        look: dict[str, Any] = {"color": f"C{number}", "marker": "os^"[number], "markersize": 4, "linewidth": 1.4}
        right.errorbar(
            sizes,
            [100 * mean(values) for values in found],
            [100 * spread(values) for values in found],
            capsize=3,
            elinewidth=0.8,
            linestyle=(0, (4, 2)) if mode == "threshold 0.9" else "-",
            label=label,
            **look,
        )
        cost.plot(sizes, [passes(arms_of(document, group, size), mode) for size in sizes], label=label, **look)
    right.set(title="questions answered exactly", ylabel="%", ylim=(0, 102))
    cost.set(title="forward passes per answer", ylabel="passes", ylim=(0, None))
    for axes in (right, cost):
        axes.set(xlabel="dialogues to learn from", xscale="log")
        axes.set_xticks(sizes, [f"{size:,}" for size in sizes])
        axes.minorticks_off()
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    right.legend(frameon=False, loc="best")
    figure.savefig(path, dpi=150, metadata={"Description": mark})
