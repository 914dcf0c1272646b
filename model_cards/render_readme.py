"""Render the tables and the plot of README.md from the result files; `--check` only says whether they are fresh."""

import argparse
import hashlib
import json
import math
import re
import sys
from itertools import product
from pathlib import Path
from typing import Any

from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "model_cards" / "results"
README = ROOT / "README.md"
PLOT = ROOT / "model_cards" / "assets" / "decoding.png"

KIND_NAMES = {
    "colour": "colour (“What colour is the star?”)",
    "shape": "shape (“Which shape is red?”)",
    "what_is_at": "what is at (“What is at the top left?”)",
    "where_is": "where is (“Where is the red star?”)",
    "count": "count (“How many shapes are there?”)",
    "existence": "existence (“Is there a red star?”)",
    "caption": "whole caption, every word (“Describe the picture.”)",
}


def parity_table(document: dict[str, Any]) -> str:
    """Largest deviation of each group of recorded cases.

    Args:
        document: a parity result: {"cases": [{"group", "case", "deviation", "tolerance"}], ...}.

    Returns:
        A Markdown table.
    """
    groups: dict[str, list[dict[str, Any]]] = {}
    for case in document["cases"]:
        groups.setdefault(case["group"], []).append(case)
    rows = ["| compared | cases | largest deviation | tolerance |", "|---|---:|---:|---:|"]
    for name, cases in groups.items():
        worst = max(cases, key=lambda case: case["deviation"])
        largest = "none" if worst["deviation"] == 0 else f"{worst['deviation']:.1e}"
        tolerance = "exact" if worst["tolerance"] == 0 else f"{worst['tolerance']:.0e}"
        rows.append(f"| {name} | {len(cases)} | {largest} | {tolerance} |")
    return "\n".join(rows)


def evaluation_table(document: dict[str, Any]) -> str:
    """Exact match by kind of question.

    Args:
        document: written by `lladav eval --output`.

    Returns:
        A Markdown table of the test split beside the blind baseline and the unseen pairs.
    """
    test, unseen = document["splits"]["test"], document["splits"]["unseen_pairs"]
    rows = [
        "| question | exact match (95 % interval) | wrong picture | unseen colour-shape pairs | tokens per forward |",
        "|---|---:|---:|---:|---:|",
    ]
    for score, other in zip(test, unseen, strict=True):
        low, high = score["interval"]
        rows.append(
            f"| {KIND_NAMES[score['kind']]} | {score['accuracy']:.1%} ({low:.1%} to {high:.1%}) "
            f"| {score['blind_correct'] / score['questions']:.1%} | {other['accuracy']:.1%} "
            f"| {score['tokens_per_forward']:.2f} |"
        )
    questions = sum(score["questions"] for score in test)
    extra = sum(score["questions"] for score in unseen)
    rows.append(f"\n{questions} questions on unseen scenes and {extra} with unseen pairs; `{document['command']}`.")
    return "\n".join(rows)


def training_table(records: list[dict[str, Any]]) -> str:
    """Validation accuracy over the training run.

    Args:
        records: the log of `lladav train tiny`.

    Returns:
        A Markdown table, a row for each thousand steps, and the total time.
    """
    evaluated = [record for record in records if "validation" in record]
    kinds = list(evaluated[0]["validation"])
    rows = ["| step | " + " | ".join(kinds) + " |", "|---:|" + "---:|" * len(kinds)]
    for record in evaluated:
        shares = [f"{seen:.0%}" for seen, _ in record["validation"].values()]
        rows.append(f"| {record['step']:,} | " + " | ".join(shares) + " |")
    rows.append(f"\n{evaluated[-1]['seconds'] / 60:.0f} minutes on one CPU thread, evaluations left out.")
    return "\n".join(rows)


RULE_NAMES = {
    "max_denoising_steps": "fixed schedule",
    "threshold": "threshold",
    "factor": "factor",
    "entropy_bound": "entropy bound",
}


def rule_of(settings: dict[str, Any]) -> tuple[str, float]:
    """Which rule an arm uses, and its parameter.

    Args:
        settings: of the arm.

    Returns:
        A key of `RULE_NAMES` and the value.
    """
    name = next(name for name in reversed(RULE_NAMES) if name in settings)
    return name, settings[name]


def decoding_table(document: dict[str, Any]) -> str:
    """What each commit rule costs and brings.

    Args:
        document: written by measure_decoding.py.

    Returns:
        A Markdown table.
    """
    rows = [
        "| rule | block | exact match | captions | unseen pairs | ambiguous pictures | tokens per forward |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for arm in document["arms"]:
        name, value = rule_of(arm["settings"])
        label = (
            f"{value} step{'s' * (value > 1)}" if name == "max_denoising_steps" else f"{RULE_NAMES[name]} {value:g}"
        )
        test, unseen, blended = arm["test"], arm["unseen_pairs"], arm["blended"]
        rows.append(
            f"| {label} | {arm['settings']['block_length']} | {test['exact_match']:.1%} "
            f"| {test['caption_exact_match']:.1%} | {unseen['exact_match']:.1%} | {blended['well_formed']:.1%} "
            f"| {test['tokens_per_forward']:.2f} / {blended['tokens_per_forward']:.2f} |"
        )
    first = document["arms"][0]
    rows.append(
        f"\n{first['test']['questions']} questions per split and {first['blended']['samples']} ambiguous pictures; "
        "tokens per forward on questions / on ambiguous pictures; canvas of 32 tokens; "
        f"`{document['command']}`."
    )
    return "\n".join(rows)


def infilling_table(document: dict[str, Any]) -> str:
    """How well hidden words of captions are filled in.

    Args:
        document: written by measure_decoding.py.

    Returns:
        A Markdown table.
    """
    rows = ["| hidden word of a true caption | filled right | wrong picture |", "|---|---:|---:|"]
    for row in document["infilling"]:
        rows.append(f"| {row['hidden']} | {row['exact_match']:.1%} | {row['wrong_picture']:.1%} |")
    rows.append(f"\n{document['infilling'][0]['captions']} captions each.")
    return "\n".join(rows)


def repeats_table(document: dict[str, Any]) -> str:
    """How much long answers repeat themselves, with and without the n-gram rule.

    Args:
        document: written by measure_decoding.py.

    Returns:
        A Markdown table.
    """
    rows = [
        "| steps | no_repeat_ngram_size | answers with a repeated run | tokens in such runs | tokens per forward |",
        "|---:|---:|---:|---:|---:|",
    ]
    for row in document["repeats"]:
        settings = row["settings"]
        rows.append(
            f"| {settings['max_denoising_steps']} | {settings.get('no_repeat_ngram_size', 'off')} "
            f"| {row['answers_with_repeats']:.0%} | {row['repeated_tokens']:.1%} | {row['tokens_per_forward']:.2f} |"
        )
    rows.append(f"\n{document['repeats'][0]['samples']} captions of 96 tokens, the end token forbidden.")
    return "\n".join(rows)


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
    figure = Figure(figsize=(9.6, 4.2), layout="constrained")
    for axes, (part, measure, count, title) in zip(figure.subplots(1, 2), panels, strict=True):
        for (name, label), block in product(RULE_NAMES.items(), (8, 32)):
            arms = [arm for arm in document["arms"] if rule_of(arm["settings"])[0] == name]
            arms = [arm[part] for arm in arms if arm["settings"]["block_length"] == block]
            points = sorted((arm["tokens_per_forward"], arm[measure], arm[count]) for arm in arms)
            axes.errorbar(
                [rate for rate, _, _ in points],
                [100 * share for _, share, _ in points],
                [196 * math.sqrt(share * (1 - share) / asked) for _, share, asked in points],
                color=f"C{list(RULE_NAMES).index(name)}",
                linestyle="-" if block == 8 else ":",
                linewidth=1.4,
                marker="o" if block == 8 else "s",
                markersize=4,
                elinewidth=0.7,
                label=label if block == 8 else None,
            )
        axes.set(title=title, xlabel="tokens per forward pass", ylabel="%", ylim=(0, 102))
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    figure.axes[0].legend(frameon=False, loc="lower right", title="blocks of 8 (dotted: 32)")
    figure.savefig(path, dpi=150, metadata={"Description": mark})


def plot_mark() -> str:
    """A fingerprint of what the plot is drawn from."""
    return hashlib.sha256((RESULTS / "decoding.json").read_bytes()).hexdigest()


def plot_is_fresh() -> bool:
    """Whether the plot was drawn from the result file that is there."""
    if not PLOT.exists():
        return False
    with Image.open(PLOT) as picture:
        return bool(picture.info.get("Description") == plot_mark())


def read_result(name: str) -> Any:
    """A result file, JSON or JSON lines.

    Args:
        name: its name without the ending.

    Returns:
        The document, or the list of records.
    """
    lines = RESULTS / f"{name}.jsonl"
    if lines.exists():
        return [json.loads(line) for line in lines.read_text(encoding="utf-8").splitlines()]
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


TABLES = {
    "parity": ("parity", parity_table),
    "evaluation": ("evaluation", evaluation_table),
    "training": ("training", training_table),
    "decoding": ("decoding", decoding_table),
    "infilling": ("decoding", infilling_table),
    "repeats": ("decoding", repeats_table),
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
    if options.check:
        return 0 if fresh == text and plot_is_fresh() else 1
    if not plot_is_fresh():
        draw_decoding(read_result("decoding"), PLOT, plot_mark())
    README.write_text(fresh, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
