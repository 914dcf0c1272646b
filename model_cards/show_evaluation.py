"""Put an evaluation of the bundled checkpoint on the suite where README and model card read it, and show its answers.

python model_cards/show_evaluation.py runs/suite

Writes results/evaluation.json and, beside the model card, a contact sheet of every kind of question, one of wrong
answers, and failures.md, which lists some of each kind.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers_lladav import BUNDLED_CHECKPOINT
from transformers_lladav.cards import SHEETS
from transformers_lladav.contact_sheets import SheetRow, contact_sheet
from transformers_lladav.eval_asking import Answer
from transformers_lladav.eval_folder import read_answers
from transformers_lladav.eval_run import RESULT
from transformers_lladav.eval_tasks import Question, Task, open_tasks
from transformers_lladav.files import write_text
from transformers_lladav.media import media_parts
from transformers_lladav.result_tables import KIND_NAMES, is_of_suite

RESULT_FILE = Path(__file__).resolve().parent / "results" / "evaluation.json"
SHOWN_SPLIT = "suite:test"
COLUMNS, TILE = 6, 200
FAILURES = 24
LISTED = 12  # wrong answers of a kind


def open_evaluation(folder: Path) -> tuple[dict[str, Any], list[Task], list[Answer]]:
    """Read a finished evaluation of the suite.

    Args:
        folder: of `lladav eval`.

    Returns:
        Its result, its tasks, and the answers in order, blind ones left out.

    Raises:
        ValueError: if it is not finished, or of something else.
    """
    if not (folder / RESULT).is_file():
        raise ValueError(f"{folder} holds no finished evaluation; run: lladav eval --blind --output {folder}")
    document = json.loads((folder / RESULT).read_text(encoding="utf-8"))
    if not is_of_suite(document):
        raise ValueError(f"{folder} evaluates other tasks than the suite; run: lladav eval --blind --output {folder}")
    tasks = [open_tasks([task["task"]], limit=task["questions"])[0] for task in document["tasks"]]
    answers = [answer for answer in read_answers(folder) if not answer.blind]
    return document, tasks, sorted(answers, key=lambda answer: answer.key)


def row_of(tasks: Sequence[Task], answer: Answer) -> SheetRow:
    """An answer for a contact sheet.

    Args:
        tasks: of the evaluation.
        answer: to one of their questions.

    Returns:
        Pictures, question and answer.
    """
    question: Question = tasks[answer.task].questions[answer.number]
    pictures, is_right = media_parts(question.messages, "image"), answer.score == 1
    return SheetRow(pictures, question.turns, answer.expected, answer.given, is_right)


def first_of_kinds(tasks: Sequence[Task], answers: Sequence[Answer], count: int) -> list[Answer]:
    """The first answers of every kind of the shown split, right or wrong: nothing is chosen.

    Args:
        tasks: of the evaluation.
        answers: in order.
        count: of each kind.

    Returns:
        The answers, kind by kind.
    """
    shown: dict[str, list[Answer]] = {}
    for answer in answers:
        if tasks[answer.task].name == SHOWN_SPLIT:
            shown.setdefault(answer.kind, []).append(answer)
    return [answer for group in shown.values() for answer in group[:count]]


def some_failures(answers: Sequence[Answer], count: int) -> list[Answer]:
    """Wrong answers, the kinds of all splits in turn.

    Args:
        answers: in order.
        count: at most.

    Returns:
        The first of each, then the second, and so on.
    """
    groups: dict[tuple[int, str], list[Answer]] = {}
    for answer in answers:
        if answer.score < 1:
            groups.setdefault((answer.task, answer.kind), []).append(answer)
    longest = max(map(len, groups.values()), default=0)
    turns = [group[turn] for turn in range(longest) for group in groups.values() if turn < len(group)]
    return turns[:count]


def failures_text(document: dict[str, Any], tasks: Sequence[Task], answers: Sequence[Answer]) -> str:
    """Wrong answers by split and kind as Markdown, the first few of each.

    Args:
        document: the result.
        tasks: of the evaluation.
        answers: in order.

    Returns:
        The text.
    """
    parts = [
        "# What the bundled checkpoint gets wrong\n",
        f"Of `{document['command']}`, the first {LISTED} of each kind.\n",
    ]
    for number, task in enumerate(tasks):
        of_task = [answer for answer in answers if answer.task == number]
        for kind in dict.fromkeys(answer.kind for answer in of_task):
            asked = [answer for answer in of_task if answer.kind == kind]
            wrong = [answer for answer in asked if answer.score < 1]
            parts.append(f"## {task.name.removeprefix('suite:')}: {KIND_NAMES[kind]}, {len(wrong)} of {len(asked)}\n")
            if wrong:
                parts.append("| picture | question | expected | given |\n|---|---|---|---|")
                parts += [
                    f"| {' | '.join(map(in_cell, (answer.id, answer.question, answer.expected, answer.given)))} |"
                    for answer in wrong[:LISTED]
                ]
                parts.append("")
    return "\n".join(parts).rstrip() + "\n"


def in_cell(text: str) -> str:
    """A text that cannot leave its cell of a Markdown table."""
    return " ".join(text.split()).replace("|", r"\|").replace("<", "&lt;") or "(nothing)"


def main(arguments: list[str] | None = None) -> int:
    """Write results and sheets.

    Args:
        arguments: command line; that of the process by default.

    Returns:
        0, or 1 with the reason on standard error.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="written by lladav eval --blind --output FOLDER")
    parser.add_argument("--output", type=Path, default=RESULT_FILE, help="result file (default: %(default)s)")
    parser.add_argument(
        "--card", type=Path, default=BUNDLED_CHECKPOINT, help="folder of the card (default: %(default)s)"
    )
    options = parser.parse_args(arguments)
    try:
        document, tasks, answers = open_evaluation(options.folder)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201
        return 1
    of_all, of_wrong, listed = SHEETS
    for name, shown in {of_all: first_of_kinds(tasks, answers, 2), of_wrong: some_failures(answers, FAILURES)}.items():
        if shown:
            sheet = contact_sheet([row_of(tasks, answer) for answer in shown], columns=COLUMNS, tile=TILE)
            sheet.quantize(255, dither=0).save(options.card / name, optimize=True)
    write_text(options.card / listed, failures_text(document, tasks, answers))
    write_text(options.output, json.dumps(document, indent=1, ensure_ascii=False) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
