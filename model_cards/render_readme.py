"""Render the tables of README.md from the result files; `--check` only says whether they are up to date."""

import argparse
import json
import re
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "model_cards" / "results"
README = ROOT / "README.md"

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


TABLES = {"parity": parity_table, "evaluation": evaluation_table, "training": training_table}


def render(text: str) -> str:
    """Fill every `<!-- table: NAME -->` ... `<!-- end -->` block from its result file.

    Args:
        text: the document.

    Returns:
        The document with fresh tables.
    """

    def fill(match: re.Match[str]) -> str:
        name = match["name"]
        return f"<!-- table: {name} -->\n{TABLES[name](read_result(name))}\n<!-- end -->"

    return re.sub(r"<!-- table: (?P<name>\w+) -->\n.*?<!-- end -->", fill, text, flags=re.DOTALL)


def main(arguments: list[str] | None = None) -> int:
    """Render or check the README.

    Args:
        arguments: command line; that of the process by default.

    Returns:
        0, or 1 if `--check` found stale tables.
    """
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing; exit 1 if a table is stale")
    options = parser.parse_args(arguments)
    text = README.read_text(encoding="utf-8")
    fresh = render(text)
    if options.check:
        return 0 if fresh == text else 1
    README.write_text(fresh, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
