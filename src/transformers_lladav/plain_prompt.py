"""A picture and its caption without any template, as the paper's first stage learns them.

LLaDA-V, arXiv:2505.16933, section 3.2, in LLaVA's plain format: the picture, directly followed by the caption and a
line feed; no system prompt, no headers, no end.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch

from .diffusion_lladav import IGNORE_INDEX

Prompt = Literal["chat", "plain"]

PLAIN_TEMPLATE = """\
{%- for part in messages[0].content -%}
  {%- if part.type == 'text' -%}{{- part.text -}}
  {%- else -%}{{- '<' + part.type + '>' -}}
  {%- endif -%}
{%- endfor -%}
"""


def template_options(prompt: Prompt, image_separator: str) -> dict[str, Any]:
    """What `apply_chat_template` needs to write a prompt.

    Args:
        prompt: which kind.
        image_separator: what stands between a picture and the text after it; a plain prompt has none.

    Returns:
        Keyword arguments.
    """
    return {"chat_template": PLAIN_TEMPLATE} if prompt == "plain" else {"image_separator": image_separator}


def plain_chat(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Bring a conversation to what `PLAIN_TEMPLATE` writes out.

    Args:
        messages: a question with a picture or video, and an answer. The question's words are dropped, as in LLaVA,
            and those of a system message.

    Returns:
        One message: the pictures and videos, and the answer as it is with a line feed after it.

    Raises:
        ValueError: if there is no picture, or more than one turn.
    """
    roles = [message["role"] for message in messages]
    turn = roles[1:] if roles[:1] == ["system"] else roles
    if turn != ["user", "assistant"]:
        raise ValueError(
            f'the messages are {", ".join(roles)}, and prompt="plain" takes one question and one answer; split the '
            'sample, or pass prompt="chat"'
        )
    question, answer = ([] if isinstance(m["content"], str) else list(m["content"]) for m in messages[-2:])
    media = [part for part in question if part["type"] != "text"]
    if not media:
        raise ValueError(
            'the question has no picture, and prompt="plain" is for pictures with captions; leave the sample out, or '
            'pass prompt="chat"'
        )
    if any(part["type"] != "text" for part in answer):
        raise ValueError('the answer has a picture, and prompt="plain" learns text; move it to the question')
    caption = messages[-1]["content"] if not answer else "".join(part["text"] for part in answer)
    return [{"role": "user", "content": [*media, {"type": "text", "text": f"{caption}\n"}]}]


def label_plain(input_ids: torch.Tensor, placeholders: Sequence[int]) -> torch.Tensor:
    """Say which tokens of a plain prompt are learned: those after the picture.

    Args:
        input_ids: (length,), one prompt without padding.
        placeholders: ids of pictures and videos.

    Returns:
        Labels of the same shape: the token where it is learned, -100 elsewhere.
    """
    places = torch.arange(len(input_ids), device=input_ids.device)
    return torch.where(places >= caption_start(input_ids, placeholders), input_ids, IGNORE_INDEX)


def caption_start(input_ids: torch.Tensor, placeholders: Sequence[int]) -> int:
    """The position after the last placeholder of a plain prompt."""
    shown = torch.isin(input_ids, torch.tensor(placeholders, device=input_ids.device)).nonzero()
    return int(shown[-1]) + 1 if len(shown) else 0
