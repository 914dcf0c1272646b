"""Exact match on the questions of `scenes`, beside the blind baseline: the same questions about wrong pictures."""

import json
import platform
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from PIL import Image

from . import scenes
from .eval_metrics import wilson_interval
from .files import write_text


@dataclass(frozen=True)
class Score:
    """Exact match of one kind of question.

    Attributes:
        kind: which kind.
        questions: how many were asked.
        correct: how many answers were right to the letter.
        blind_correct: how many were right when each question was asked about another question's picture.
        tokens_per_forward: mean over the questions.
    """

    kind: str
    questions: int
    correct: int
    blind_correct: int
    tokens_per_forward: float

    @property
    def accuracy(self) -> float:
        """Share of right answers."""
        return self.correct / self.questions

    @property
    def interval(self) -> tuple[float, float]:
        """95 % confidence interval of the accuracy (Wilson, 1927)."""
        return wilson_interval(self.correct, self.questions)


@dataclass(frozen=True)
class Reply:
    """One generated answer.

    Attributes:
        text: the answer.
        tokens_per_forward: of its generation.
    """

    text: str
    tokens_per_forward: float


def answer_batch(
    model: Any, processor: Any, pictures: Sequence[Image.Image], questions: Sequence[str], **settings: Any
) -> list[Reply]:
    """Ask one question about each picture.

    Args:
        model: a LLaDA-V.
        processor: its processor.
        pictures: one per question.
        questions: one per picture.
        **settings: passed to `generate`.

    Returns:
        The replies, in order.
    """
    chats = [
        [{"role": "user", "content": [{"type": "image", "image": picture}, {"type": "text", "text": question}]}]
        for picture, question in zip(pictures, questions, strict=True)
    ]
    inputs = processor.apply_chat_template(
        chats, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    ).to(model.device)
    output = model.generate(**inputs, return_dict_in_generate=True, **settings)
    texts = processor.tokenizer.batch_decode(output.answers, skip_special_tokens=True)
    return [Reply(text.strip(), rate) for text, rate in zip(texts, output.tokens_per_forward.tolist(), strict=True)]


def evaluate(
    model: Any,
    processor: Any,
    split: str = "test",
    count: int = 700,
    batch_size: int = 32,
    blind: bool = True,
    progress: Callable[[Iterable[int]], Iterable[int]] = iter,
    **settings: Any,
) -> list[Score]:
    """Measure exact match per kind of question.

    Args:
        model: a LLaDA-V.
        processor: its processor.
        split: of `scenes`.
        count: number of questions over all kinds.
        batch_size: questions answered together.
        blind: also ask every question about another question's picture.
        progress: wraps the batch starts, for a progress bar.
        **settings: passed to `generate`.

    Returns:
        One score per kind, in the order of `scenes.EVALUATED_KINDS`.
    """
    examples = scenes.evaluation_set(split, count)
    pictures = [scenes.render(scene, 64) for scene, _ in examples]
    questions = [question for _, question in examples]
    # The wrong picture is that of the next question of the same kind: kinds alternate.
    shift = len(scenes.EVALUATED_KINDS)
    wrong = [pictures[(index + shift) % len(pictures)] for index in range(len(pictures))]
    seen, unseen = [], []
    for start in progress(range(0, len(examples), batch_size)):
        part = slice(start, start + batch_size)
        texts = [question.text for question in questions[part]]
        seen += answer_batch(model, processor, pictures[part], texts, **settings)
        if blind:
            unseen += answer_batch(model, processor, wrong[part], texts, **settings)
    return [_score(kind, questions, seen, unseen) for kind in scenes.EVALUATED_KINDS]


def _score(kind: str, questions: list[scenes.Question], seen: list[Reply], unseen: list[Reply]) -> Score:
    rows = [index for index, question in enumerate(questions) if question.kind == kind]
    return Score(
        kind=kind,
        questions=len(rows),
        correct=sum(seen[row].text == questions[row].answer for row in rows),
        blind_correct=sum(unseen[row].text == questions[row].answer for row in rows) if unseen else 0,
        tokens_per_forward=sum(seen[row].tokens_per_forward for row in rows) / max(len(rows), 1),
    )


def write_result(path: Path, splits: dict[str, list[Score]], command: str, details: dict[str, Any]) -> None:
    """Save scores with what is needed to repeat them.

    Args:
        path: JSON file to write.
        splits: scores by split.
        command: how they were made.
        details: further facts, such as the commit or the number of training steps.
    """
    document = {
        "command": command,
        "machine": {"processor": platform.machine(), "system": platform.system()},
        "versions": {
            "python": platform.python_version(), "torch": torch.__version__, "transformers": transformers.__version__
        },
        **details,
        "splits": {
            name: [
                {**asdict(score), "accuracy": score.accuracy, "interval": list(score.interval)} for score in scores
            ]
            for name, scores in splits.items()
        },
    }  # fmt: skip
    write_text(path, json.dumps(document, indent=2) + "\n")
