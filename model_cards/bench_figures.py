"""Table and plot of speed, from results/bench.json."""

from pathlib import Path
from typing import Any

from transformers_lladav.bench_run import bench_rows

AXES = {"answer": "tokens of the answer", "prompt": "tokens of the prompt", "batch": "prompts together"}


def bench_table(document: dict[str, Any]) -> str:
    """What the arms took, against the official loop.

    Args:
        document: written by `lladav bench`.

    Returns:
        A Markdown table.
    """
    machine, sizes = document["machine"], document["timings"][0]["sizes"]
    on_gpu = machine["device"] != "cpu"
    heads = ["", "", "passes", "whole", *(["tokens/s"] if on_gpu else []), "times as fast"]
    rows = ["| " + " | ".join(heads) + " |", "|---|---|" + "---:|" * (len(heads) - 2)]
    for name, description, passes, whole, speed, ratio in bench_rows(document):
        cells = [f"`{name}`", description, passes, whole, *([speed] if on_gpu else []), ratio]
        rows.append("| " + " | ".join(cells) + " |")
    where = machine["device"] if on_gpu else f"{machine['threads']} CPU threads"
    load = "" if on_gpu or machine["load"] is None else f", load {machine['load'][0]:.1f}"
    rows.append(
        f"\n{sizes['layers']} layers of width {sizes['hidden']}, {sizes['prompt']:,} tokens of prompt and "
        f"{sizes['answer']} of answer; medians of {document['rounds']} rounds in turns on {where}{load}. "
        f"`{document['command']}`."
    )
    return "\n".join(rows)


def draw_bench(document: dict[str, Any], path: Path, mark: str) -> None:
    """Plot how time grows with answer, prompt and batch, beside what arithmetic alone would take.

    The dashed lines are scaled to each arm's first point: where measured times stay below them, something else than
    arithmetic took its share of that one.

    Args:
        document: written by `lladav bench --growth`.
        path: PNG file to write.
        mark: kept in the file, to tell whether it is fresh.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11.5, 3.8), layout="constrained")
    for axes, (name, label) in zip(figure.subplots(1, 3), AXES.items(), strict=True):
        found = document["growth"][name]
        for number, arm in enumerate(dict.fromkeys(timing["arm"] for timing in found)):
            timings = [timing for timing in found if timing["arm"] == arm]
            values = [timing["sizes"][name] for timing in timings]
            base = timings[0]
            times = [timing["median"] / base["median"] for timing in timings]
            arithmetic = [timing["flops"] / base["flops"] for timing in timings]
            axes.plot(values, times, color=f"C{number}", marker="os^"[number], markersize=4, linewidth=1.4, label=arm)
            axes.plot(values, arithmetic, color=f"C{number}", linestyle=(0, (4, 2)), linewidth=0.9)
        axes.set(xlabel=label, xscale="log", yscale="log")
        axes.set_xticks(values, [f"{value:,}" for value in values])
        axes.minorticks_off()
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    first = figure.axes[0]
    first.set(ylabel="time, first point = 1")
    first.legend(frameon=False, loc="upper left")
    figure.savefig(path, dpi=150, metadata={"Description": mark})
