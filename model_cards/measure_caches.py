"""Measure what remembering the prompt costs on the bundled checkpoint: exact match, agreement and repetition.

The presets answer the whole suite; refresh intervals, thresholds and blocks some questions of its test split. Caches
fail by repetition (arXiv:2601.20520), so that captions and answers that may not end are searched for it. Writes
results/caches.json, from which render_readme.py makes the tables.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

from circumstances import circumstances
from measure_decoding import BLOCKS, CANVAS, LONG_CANVAS, measure_repeats, repeated_share
from rich.console import Console
from rich.progress import track

from transformers_lladav import asking
from transformers_lladav.eval_asking import Answer, Asking, ask_batches, list_items, make_batches
from transformers_lladav.eval_survey import survey
from transformers_lladav.eval_tasks import Task, open_tasks
from transformers_lladav.files import write_text
from transformers_lladav.presets_lladav import PRESETS

RESULT = Path(__file__).resolve().parent / "results" / "caches.json"
# The presets, and what they might have been: the prompt run less often, its end remembered as well.
SPEEDS: dict[str, dict[str, Any]] = {
    "exact": {},
    "balanced": PRESETS["balanced"].settings,
    "fast": PRESETS["fast"].settings,
    "balanced, every fourth step": {**PRESETS["balanced"].settings, "prompt_refresh_interval": 4},
    "balanced, question remembered": {**PRESETS["balanced"].settings, "live_prompt_length": 0},
    "fast, question remembered": {**PRESETS["fast"].settings, "live_prompt_length": 0},
}
INTERVALS = (1, 2, 4, 8, None)
THRESHOLDS = (None, 0.9)


def grid() -> list[dict[str, Any]]:
    """Settings to compare: every block, refresh interval and threshold, and what a dual cache changes.

    Returns:
        Arguments of `generate`, the exact ones of each block first.
    """
    found = []
    for block, threshold, interval in product(BLOCKS, THRESHOLDS, INTERVALS):
        found.append(
            {
                "max_new_tokens": CANVAS,
                "block_length": block,
                "threshold": threshold,
                "prompt_refresh_interval": interval,
            }
        )
    dual = {"max_new_tokens": CANVAS, "block_length": 8, "threshold": 0.9, "use_cache": "dual"}
    return [*found, *({**dual, "prompt_refresh_interval": interval} for interval in INTERVALS[1:])]


def answers_of(assistant: asking.Assistant, tasks: Sequence[Task], settings: dict[str, Any]) -> list[Answer]:
    """Ask everything.

    Args:
        assistant: a loaded checkpoint.
        tasks: of the suite.
        settings: of `generate`.

    Returns:
        The answers, in the order of the questions.
    """
    surveys = [survey(task) for task in tasks]
    how = Asking(settings)
    batches = make_batches(list_items(surveys), tasks, surveys, assistant.processor, how.batch_size)
    found = [
        answer for given in ask_batches(assistant.model, assistant.processor, tasks, batches, how) for answer in given
    ]
    return sorted(found, key=lambda answer: answer.key)


def figures(assistant: asking.Assistant, answers: Sequence[Answer], exact: Sequence[Answer]) -> dict[str, Any]:
    """What answers are worth.

    Args:
        assistant: for its tokenizer.
        answers: of some settings.
        exact: of the exact loop, to the same questions.

    Returns:
        Exact match, the share of answers that are those of the exact loop, tokens per forward, and the share of
        captions with a run of tokens that repeats itself.
    """
    captions = [answer.given for answer in answers if answer.kind == "caption"]
    repeated = [repeated_share(assistant.tokenizer(text).input_ids) > 0 for text in captions]
    return {
        "questions": len(answers),
        "exact_match": sum(answer.score for answer in answers) / len(answers),
        "agreement": sum(one.given == other.given for one, other in zip(answers, exact, strict=True)) / len(answers),
        "tokens_per_forward": sum(answer.tokens_per_forward or 0.0 for answer in answers) / len(answers),
        "captions": len(captions),
        "captions_with_repeats": sum(repeated) / max(len(captions), 1),
    }


def measure_speeds(assistant: asking.Assistant, limit: int | None, samples: int) -> list[dict[str, Any]]:
    """The presets, and what they are compared with, on the whole suite.

    Args:
        assistant: a loaded checkpoint.
        limit: questions of each split; all by default.
        samples: long answers.

    Returns:
        A row for each preset, the exact one first.
    """
    tasks, rows = open_tasks(["suite"], limit=limit), []
    exact: list[Answer] = []
    for name, settings in track(SPEEDS.items(), description="presets", console=Console(stderr=True)):
        found = answers_of(assistant, tasks, settings)
        exact = exact or found
        row = {"preset": name, "settings": settings, "all": figures(assistant, found, exact), "splits": {}}
        for number, task in enumerate(tasks):
            own, others = ([answer for answer in answers if answer.task == number] for answers in (found, exact))
            row["splits"][task.name] = figures(assistant, own, others)
        row["long"] = measure_repeats(assistant, {"block_length": 8, **settings}, samples)
        rows.append(row)
    return rows


def measure_grid(assistant: asking.Assistant, questions: int) -> list[dict[str, Any]]:
    """Intervals, thresholds and blocks on the test split.

    Args:
        assistant: a loaded checkpoint.
        questions: how many.

    Returns:
        A row for each.
    """
    tasks = open_tasks(["suite:test"], limit=questions)
    exact: dict[int, list[Answer]] = {}
    rows = []
    for settings in track(grid(), description="intervals", console=Console(stderr=True)):
        found = answers_of(assistant, tasks, settings)
        rows.append(
            {"settings": settings, **figures(assistant, found, exact.setdefault(settings["block_length"], found))}
        )
    return rows


def caches_table(document: dict[str, Any]) -> str:
    """The presets.

    Args:
        document: the result file.

    Returns:
        A Markdown table.
    """
    rows = [
        "| preset | exact match | same as exact | tokens per forward | captions that repeat | repeated, long |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for row in document["speeds"]:
        every, long = row["all"], row["long"]
        rows.append(
            f"| {row['preset']} | {every['exact_match']:.1%} | {every['agreement']:.1%} | "
            f"{every['tokens_per_forward']:.2f} | {every['captions_with_repeats']:.1%} | "
            f"{long['repeated_tokens']:.1%} |"
        )
    every = document["speeds"][0]["all"]
    rows.append(
        f"\n{every['questions']:,} questions of the suite, {every['captions']:,} captions among them; "
        f"share of tokens in runs that stood before, in {document['speeds'][0]['long']['samples']} answers of "
        f"{LONG_CANVAS} tokens that may not end. "
        f"`{document['command']}`."
    )
    return "\n".join(rows)


def intervals_table(document: dict[str, Any]) -> str:
    """Refresh intervals by block and threshold.

    Args:
        document: the result file.

    Returns:
        A Markdown table.
    """
    rows = [
        "| block | threshold | cache | exact | every 2nd | every 4th | every 8th | once |",
        "|---:|---:|---|---:|---:|---:|---:|---:|",
    ]
    lines: dict[tuple[Any, ...], dict[Any, float]] = {}
    for row in document["grid"]:
        settings = row["settings"]
        key = settings["block_length"], settings["threshold"], settings.get("use_cache", "prompt")
        lines.setdefault(key, {})[settings["prompt_refresh_interval"]] = row["exact_match"]
    for (block, threshold, cache), found in lines.items():
        cells = [f"{found[interval]:.1%}" if interval in found else "" for interval in INTERVALS]
        rows.append(f"| {block} | {threshold or '-'} | {cache} | {' | '.join(cells)} |")
    rows.append(f"\nExact match on {document['grid'][0]['questions']} questions of the test split.")
    return "\n".join(rows)


def main(arguments: list[str] | None = None) -> int:
    """Measure everything and write the result file.

    Args:
        arguments: command line; that of the process by default.

    Returns:
        The exit code.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--limit", type=int, help="questions of each split for the presets (default: all)")
    parser.add_argument("--questions", type=int, default=520, help="for the other settings (default: %(default)s)")
    parser.add_argument("--samples", type=int, default=100, help="long answers (default: %(default)s)")
    parser.add_argument("--output", type=Path, default=RESULT, help="result file (default: %(default)s)")
    options = parser.parse_args(arguments)
    assistant = asking.load(device="cpu")
    document = {
        **circumstances("measure_caches.py", arguments),
        "speeds": measure_speeds(assistant, options.limit, options.samples),
        "grid": measure_grid(assistant, options.questions),
    }
    write_text(options.output, json.dumps(document, indent=1) + "\n")
    Console(stderr=True).print(f"Result written to {options.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
