"""Pictures and text without a chat template: no system prompt, no headers, no ends.

"plain" is the picture, directly followed by its caption and a line feed, as the paper's first stage learns them in
LLaVA's format (LLaDA-V, arXiv:2505.16933, section 3.2). "completion" is the picture, then a line per question and one
per answer: what a base model is asked to complete, at a third of a chat's tokens. An answer begins its line, so that
its tokens are those of the same answer in a chat, and not others with a blank in front.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from .chat_text_lladav import SEAM, escape
from .diffusion_lladav import IGNORE_INDEX
from .recipes import PROMPTS, Prompt

__all__ = ["PROMPTS", "Prompt", "bare_chat", "bare_turns", "label_bare", "template_options"]

# No token reaches from one text into the next: what is learned begins with a token.
BARE_TEMPLATE = f"""\
{{%- for part in messages[0].content -%}}
  {{%- if part.type == 'text' -%}}{{{{- part.text + '{SEAM}' -}}}}
  {{%- else -%}}{{{{- '<' + part.type + '>' -}}}}
  {{%- endif -%}}
{{%- endfor -%}}
"""


def template_options(prompt: Prompt, image_separator: str) -> dict[str, Any]:
    """What `apply_chat_template` needs to write a prompt.

    Args:
        prompt: which kind.
        image_separator: what stands between a picture and the text after it; only chats have one.

    Returns:
        Keyword arguments.
    """
    return {"image_separator": image_separator} if prompt == "chat" else {"chat_template": BARE_TEMPLATE}


def bare_chat(prompt: Prompt, messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Bring a conversation to what `BARE_TEMPLATE` writes out.

    Args:
        prompt: "plain" or "completion".
        messages: questions and answers, with a picture or video in the first question if at all. Of a plain prompt
            there is one of each, with a picture; the question's words are dropped, as in LLaVA, and those of a system
            message by both.

    Returns:
        One message: the pictures and videos, then what is given and what is learned, in turn.

    Raises:
        ValueError: if there are other turns, or pictures elsewhere.
    """
    roles = [message["role"] for message in messages]
    turns = messages[1:] if roles[:1] == ["system"] else messages
    pairs = 1 if prompt == "plain" else max(len(turns) // 2, 1)
    if [message["role"] for message in turns] != ["user", "assistant"] * pairs:
        takes = "one question and one answer" if prompt == "plain" else "questions and answers in turn"
        raise ValueError(
            f'the messages are {", ".join(roles)}, and prompt="{prompt}" takes {takes}; split the sample, or pass '
            'prompt="chat"'
        )
    contents = [[{"type": "text", "text": c}] if isinstance(c := m["content"], str) else list(c) for m in turns]
    media = [part for part in contents[0] if part["type"] != "text"]
    if not media and prompt == "plain":
        raise ValueError(
            'the question has no picture, and prompt="plain" is for pictures with captions; leave the sample out, or '
            'pass prompt="chat"'
        )
    for turn, content in enumerate(contents[1:], 1):
        if any(part["type"] != "text" for part in content):
            name = "answer" if turn % 2 else "later question"
            raise ValueError(f'the {name} has a picture, and prompt="{prompt}" begins with them; move it to the front')
    texts = ["".join(part["text"] for part in content if part["type"] == "text") for content in contents]
    for turn in range(1, len(texts), 2):
        texts[turn - 1] = "" if prompt == "plain" else texts[turn - 1].strip()
        texts[turn - 1] += "\n" if texts[turn - 1] else ""
        texts[turn] += "\n"
    return [{"role": "user", "content": [*media, *({"type": "text", "text": text} for text in texts)]}]


def label_bare(
    input_ids: torch.Tensor,
    chat: Sequence[Mapping[str, Any]],
    tokenizer: Any,
    control: tuple[str, ...],
    placeholders: Sequence[int],
) -> torch.Tensor:
    """Say which tokens of a bare prompt are learned: the answers, with their line feeds.

    Args:
        input_ids: (length,), one prompt without padding; its end may be cut.
        chat: what it was made of, from `bare_chat`.
        tokenizer: that made it.
        control: its control tokens, from `prepare_tokenizer`.
        placeholders: ids of pictures and videos.

    Returns:
        Labels of the same shape: the token where it is learned, -100 elsewhere.
    """
    labels = torch.full_like(input_ids, IGNORE_INDEX)
    shown = torch.isin(input_ids, torch.tensor(placeholders, device=input_ids.device)).nonzero()
    place = int(shown[-1]) + 1 if len(shown) else 0
    texts = [escape(part["text"], control) for part in chat[0]["content"] if part["type"] == "text"]
    if place == 0:  # a tokenizer may begin every text with a token of its own
        place = len(tokenizer("").input_ids)
    for turn, text in enumerate(texts):
        end = place + len(tokenizer(text, add_special_tokens=False).input_ids)
        if turn % 2:
            labels[place:end] = input_ids[place:end]
        place = end
    return labels


def bare_turns(labels: torch.Tensor) -> torch.Tensor:
    """Say which turn of a bare prompt every position is of: after each answer a new one begins.

    Args:
        labels: (length,), from `label_bare`.

    Returns:
        (length,), numbers from 0; pictures are of the first.
    """
    learned = labels != IGNORE_INDEX
    begins = torch.zeros_like(labels)
    begins[1:] = learned[:-1] & ~learned[1:]
    return begins.cumsum(0)
