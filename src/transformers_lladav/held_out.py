"""Exact match on held-out conversations: the last answer of each is generated and compared to the letter."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from .media import load_videos

# Longer answers have too many right wordings for exact match to say anything.
LONGEST_ANSWER = 128
CANVAS_UNIT = 8


@dataclass(frozen=True)
class HeldOutQuestion:
    """A conversation up to its last answer.

    Attributes:
        prompt: the messages before it.
        answer: the text of it.
        source: file and line.
    """

    prompt: list[dict[str, Any]]
    answer: str
    source: str


@dataclass(frozen=True)
class HeldOutReply:
    """A question that was answered.

    Attributes:
        question: what was asked.
        text: what the model said.
    """

    question: HeldOutQuestion
    text: str

    @property
    def right(self) -> bool:
        """Whether it is the expected answer, spaces around it apart."""
        return self.text.strip() == self.question.answer.strip()


def choose_questions(examples: Sequence[Any], tokenizer: Any, count: int) -> list[HeldOutQuestion]:
    """Take the first examples whose last answer is short enough to be right or wrong.

    Args:
        examples: held-out conversations that end with the assistant.
        tokenizer: measures answers.
        count: how many to take at most.

    Returns:
        The questions, in the order of the examples.
    """
    chosen: list[HeldOutQuestion] = []
    for example in examples:
        if len(chosen) == count:
            break
        answers = [number for number, message in enumerate(example.messages) if message["role"] == "assistant"]
        if not answers or answers[-1] == 0:
            continue
        text = _text(example.messages[answers[-1]])
        if _token_count(text, tokenizer) <= LONGEST_ANSWER:
            chosen.append(HeldOutQuestion(example.messages[: answers[-1]], text, example.source))
    return chosen


@torch.no_grad()
def answer_questions(
    model: Any,
    processor: Any,
    questions: Sequence[HeldOutQuestion],
    batch_size: int = 8,
    **settings: Any,
) -> list[HeldOutReply]:
    """Generate the answers, from prompts as users will write them, in exact mode unless the settings say otherwise.

    Args:
        model: a LLaDA-V, or a PEFT model around one, in evaluation mode.
        processor: its processor.
        questions: from `choose_questions`.
        batch_size: questions answered together.
        **settings: passed to `generate`. By default there is one canvas for all questions, of whole blocks, which
            holds the longest expected answer: it does not tell how long an answer is.

    Returns:
        The replies, in order.
    """
    replies: list[HeldOutReply] = []
    frames = processor.image_processor.max_video_frames
    longest = max((_token_count(question.answer, processor.tokenizer) for question in questions), default=0) + 1
    unit = model.generation_config.block_length or CANVAS_UNIT
    settings = {"max_new_tokens": -(-longest // unit) * unit, **settings}
    for start in range(0, len(questions), batch_size):
        batch = questions[start : start + batch_size]
        inputs = processor.apply_chat_template(
            [load_videos(question.prompt, frames) for question in batch],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            processor_kwargs={"return_tensors": "pt", "padding": True},
        ).to(model.device)
        output = model.generate(**inputs, return_dict_in_generate=True, **settings)
        texts = processor.tokenizer.batch_decode(output.answers, skip_special_tokens=True)
        replies += [HeldOutReply(question, text.strip()) for question, text in zip(batch, texts, strict=True)]
    return replies


def _text(message: dict[str, Any]) -> str:
    content = message["content"]
    return content if isinstance(content, str) else "".join(part["text"] for part in content if part["type"] == "text")


def _token_count(text: str, tokenizer: Any) -> int:
    return len(tokenizer(text, add_special_tokens=False).input_ids)
