"""What a prompt's ids say about themselves: its messages, what of them is learned, and the turn each belongs to.

LLaDA-V, arXiv:2505.16933, section 3. Everything is read from ids, never from text: a control token that somebody
typed is other ids than a real one.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from .diffusion_lladav import IGNORE_INDEX

START, HEADER_START, HEADER_END, END = "<|startoftext|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"


@dataclass(frozen=True)
class PromptIds:
    """The ids that give a prompt its structure.

    Attributes:
        start: stands once, before everything.
        header_start: opens a message's header.
        header_end: closes it.
        end: ends a message.
        user: what stands in the header of a user's message.
        assistant: what stands in the header of the assistant's.
        line_feeds: tokens that can stand between a header and its text.
        padding: fills short rows.
        mask: hides tokens.
        placeholders: of pictures and videos.
    """

    start: int
    header_start: int
    header_end: int
    end: int
    user: tuple[int, ...]
    assistant: tuple[int, ...]
    line_feeds: tuple[int, ...]
    padding: int
    mask: int
    placeholders: tuple[int, ...]

    @classmethod
    def from_processor(cls, processor: Any) -> "PromptIds":
        """Read the ids off a processor's tokenizer.

        Args:
            processor: a `LladaVProcessor`.

        Returns:
            The ids.

        Raises:
            ValueError: if the tokenizer lacks one of the tokens.
        """
        tokenizer = processor.tokenizer
        structure = (START, HEADER_START, HEADER_END, END)
        found = {name: tokenizer.backend_tokenizer.token_to_id(name) for name in structure}
        found |= {"padding token": tokenizer.pad_token_id, processor.mask_token: processor.mask_token_id}
        if missing := [name for name, token_id in found.items() if token_id is None]:
            raise ValueError(
                f"the tokenizer has no {' and no '.join(missing)}, which training needs; load that of a LLaDA model"
            )

        def role(name: str) -> tuple[int, ...]:
            return tuple(tokenizer(HEADER_START + name + HEADER_END, add_special_tokens=False).input_ids[1:-1])

        return cls(
            start=found[START],
            header_start=found[HEADER_START],
            header_end=found[HEADER_END],
            end=found[END],
            user=role("user"),
            assistant=role("assistant"),
            line_feeds=tuple(
                i for text in ("\n", "\n\n") for i in tokenizer(text, add_special_tokens=False).input_ids
            ),
            padding=found["padding token"],
            mask=found[processor.mask_token],
            placeholders=(processor.image_token_id, processor.video_token_id),
        )


@dataclass(frozen=True)
class MessageSpan:
    """Where a message stands in a prompt.

    Attributes:
        role: the ids in its header.
        start: position of its first token, that which opens the header.
        content: position after its header.
        end: position after its last token, that which ends the message; of a message that was cut, the prompt's end.
    """

    role: tuple[int, ...]
    start: int
    content: int
    end: int


def message_spans(input_ids: torch.Tensor, ids: PromptIds) -> Iterator[MessageSpan]:
    """Find the messages of a prompt.

    Args:
        input_ids: (length,), one prompt.
        ids: what to look for.

    Yields:
        The messages in order.
    """
    tokens = input_ids.tolist()
    position = 0
    while ids.header_start in tokens[position:]:
        start = tokens.index(ids.header_start, position)
        content = _after(tokens, ids.header_end, start)
        position = _after(tokens, ids.end, content)
        yield MessageSpan(tuple(tokens[start + 1 : content - 1]), start, content, position)


def _after(tokens: list[int], token_id: int, start: int) -> int:
    """The position after the first such token from `start` on, or the end if there is none."""
    try:
        return tokens.index(token_id, start) + 1
    except ValueError:
        return len(tokens)


def label_tokens(input_ids: torch.Tensor, ids: PromptIds, answers_only: bool = False) -> torch.Tensor:
    """Say which tokens of a prompt are learned, by the rule of the official training.

    The assistant's messages are learned wholly, with header and end. Of everything else the tokens that give a prompt
    its structure are learned: the start, both ends of a header, the end of a message.

    Args:
        input_ids: (length,), one prompt without padding, pictures as one placeholder or expanded.
        ids: what to look for.
        answers_only: learn the text of the assistant's messages and its end, and nothing else. Headers are given
            when an answer is generated; a model that has to guess them too hardly ever sees one with its whole answer
            hidden.

    Returns:
        Labels of the same shape: the token where it is learned, -100 elsewhere and at placeholders.
    """
    learned = torch.zeros(input_ids.shape, dtype=torch.bool, device=input_ids.device)
    if not answers_only:
        for token_id in (ids.start, ids.header_start, ids.header_end, ids.end):
            learned |= input_ids == token_id
    for message in message_spans(input_ids, ids):
        if message.role == ids.assistant:
            start = text_start(input_ids, message, ids) if answers_only else message.start
            learned[start : message.end] = True
    for token_id in ids.placeholders:
        learned &= input_ids != token_id
    return torch.where(learned, input_ids, IGNORE_INDEX)


def text_start(input_ids: torch.Tensor, message: MessageSpan, ids: PromptIds) -> int:
    """Where the words of a message begin, after the line feeds that the template writes below a header.

    Args:
        input_ids: (length,), the prompt.
        message: of it.
        ids: what to look for.

    Returns:
        The position.
    """
    start = message.content
    while start < message.end and int(input_ids[start]) in ids.line_feeds:
        start += 1
    return start


def conversation_ids(input_ids: torch.Tensor, ids: PromptIds) -> torch.Tensor:
    """Number the turns of a chat, for the conversation mask.

    Args:
        input_ids: (length,), one prompt, pictures as one placeholder or expanded.
        ids: what to look for.

    Returns:
        Turn of each position, of the same shape. The first is 0, with the system's message in it; another begins
        with the header of every user's message that comes after one of the assistant.
    """
    turns = torch.zeros(input_ids.shape, dtype=torch.long, device=input_ids.device)
    answered = False
    for message in message_spans(input_ids, ids):
        if message.role == ids.user and answered:
            turns[message.start :] += 1
            answered = False
        answered = answered or message.role == ids.assistant
    return turns
