"""Results of an evaluation: answers summed up by task and kind, as tables, as a document and as a contact sheet."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from .contact_sheets import SheetRow, contact_sheet
from .eval_asking import Answer
from .eval_metrics import interval
from .eval_tasks import Question, Task
from .files import save_picture
from .image_processing_lladav import LladaVImageProcessor, open_picture
from .media import media_parts, read_frames

ALL = "all"
MIXED = "mixed"
LABELS = ("task", "kind", "metric")  # columns of words


@dataclass(frozen=True)
class Row:
    """The answers to some questions of a task, summed up.

    Attributes:
        task: name of the task.
        kind: of the questions; "all" for those of every kind together.
        metric: of the questions; "mixed" where they have several.
        questions: how many were asked.
        score: the mean.
        interval: 95 % confidence interval of the score; see `eval_metrics.interval`.
        blind_questions: how many of them were also asked about the pictures of another question.
        blind_score: the mean of these answers; None if there are none.
        tokens_per_forward: mean over the answers in words; None if there are none.
        forwards: passes of the model for all of them, those of blind answers left out.
    """

    task: str
    kind: str
    metric: str
    questions: int
    score: float
    interval: tuple[float, float]
    blind_questions: int
    blind_score: float | None
    tokens_per_forward: float | None
    forwards: int

    @property
    def cells(self) -> dict[str, str]:
        """The row as texts by column."""
        low, high = self.interval
        return {
            "task": self.task,
            "kind": self.kind,
            "metric": self.metric,
            "questions": f"{self.questions:,}",
            "score": f"{self.score:.1%}",
            "95 % interval": f"{low:.1%} .. {high:.1%}",
            "wrong picture": "" if self.blind_score is None else f"{self.blind_score:.1%}",
            "tokens per forward": "" if self.tokens_per_forward is None else f"{self.tokens_per_forward:.2f}",
        }


def sum_up(tasks: Sequence[str], answers: Sequence[Answer]) -> list[Row]:
    """Sum answers up.

    Args:
        tasks: names, which the answers have by number.
        answers: of all tasks, in any order.

    Returns:
        For each task a row per kind (and metric, where a kind has several), in the order of the questions, and one
        over all where there is more than one.
    """
    rows: list[Row] = []
    for number, task in enumerate(tasks):
        of_task = sorted((answer for answer in answers if answer.task == number), key=lambda answer: answer.key)
        groups: dict[tuple[str, str], list[Answer]] = {}
        for answer in of_task:
            groups.setdefault((answer.kind, answer.metric), []).append(answer)
        rows += [_row(task, kind, group) for (kind, _), group in groups.items()]
        if len(groups) > 1:
            rows.append(_row(task, ALL, of_task))
    return rows


def _row(task: str, kind: str, answers: Sequence[Answer]) -> Row:
    metrics = {answer.metric for answer in answers}
    metric = metrics.pop() if len(metrics) == 1 else MIXED
    seen = [answer for answer in answers if not answer.blind]
    blind = [answer.score for answer in answers if answer.blind]
    rates = [answer.tokens_per_forward for answer in seen if answer.tokens_per_forward is not None]
    scores = [answer.score for answer in seen]
    return Row(
        task=task,
        kind=kind,
        metric=metric,
        questions=len(seen),
        score=_mean(scores),
        interval=interval(metric, scores),
        blind_questions=len(blind),
        blind_score=_mean(blind) if blind else None,
        tokens_per_forward=_mean(rates) if rates else None,
        forwards=sum(answer.forwards for answer in seen),
    )


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def as_tasks(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Rows for a result file.

    Args:
        rows: from `sum_up`.

    Returns:
        JSON: for each task its name and a list of its rows.
    """
    grouped: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        values = asdict(row)
        grouped.setdefault(values.pop("task"), []).append({**values, "interval": list(row.interval)})
    return [{"task": task, "kinds": kinds} for task, kinds in grouped.items()]


def rows_of(document: Mapping[str, Any]) -> list[Row]:
    """The rows of a result file.

    Args:
        document: with "tasks" from `as_tasks`.

    Returns:
        The rows.
    """
    return [
        Row(task=task["task"], **{**kind, "interval": tuple(kind["interval"])})
        for task in document["tasks"]
        for kind in task["kinds"]
    ]


def shown_columns(rows: Sequence[Row]) -> list[str]:
    """The columns of a table that say anything.

    Args:
        rows: of the table.

    Returns:
        Their names, keys of `Row.cells`.
    """
    return [column for column in rows[0].cells if any(row.cells[column] for row in rows)]


def markdown_table(document: Mapping[str, Any]) -> str:
    """A result as a Markdown table with a line on how it was made.

    Args:
        document: the result.

    Returns:
        The text.
    """
    rows = rows_of(document)
    shown = shown_columns(rows)
    lines = [shown, [":--" if column in LABELS else "--:" for column in shown]]
    lines += [[row.cells[column].replace("|", r"\|") for column in shown] for row in rows]
    table = "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
    return f"{table}\n\n`{document['command']}`\n"


def save_sheet(path: Path, tasks: Sequence[Task], answers: Sequence[Answer], count: int) -> None:
    """Save a contact sheet of questions and answers, wrong ones first.

    Args:
        path: of the PNG file.
        tasks: of the answers.
        answers: from an evaluation; blind ones are left out.
        count: how many to show at most.
    """
    seen = sorted((answer for answer in answers if not answer.blind), key=lambda item: (item.score == 1, item.key))
    rows = []
    for answer in seen[:count]:
        question = tasks[answer.task].questions[answer.number]
        # Right is what the metric says, which need not be the same text.
        is_right = answer.score == 1
        rows.append(SheetRow(_pictures(question), question.turns, answer.expected, answer.given, is_right))
    save_picture(contact_sheet(rows), path, "PNG")


def _pictures(question: Question) -> list[Image.Image]:
    """What a question shows: its pictures, and the first frame of each video."""
    sources = media_parts(question.messages, "image")
    for video in media_parts(question.messages, "video"):
        sources.append(read_frames(video, 1)[0] if isinstance(video, str) else video[0])
    limit = LladaVImageProcessor.max_image_pixels
    return [open_picture(source, f"a picture of {question.source}", limit) for source in sources]
