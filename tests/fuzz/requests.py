"""Requests in OpenAI's format as they come over HTTP: any JSON."""

import base64
import json
from functools import cache
from pathlib import Path
from typing import Any

from hypothesis import strategies as st
from pydantic import ValidationError

from fuzz import pictures
from fuzzing import Finding, attempt, changed, json_bytes, outcome, texts, values
from transformers_lladav import asking
from transformers_lladav.chat_requests import ChatRequest, Limits, RequestError, read_messages, read_settings
from transformers_lladav.eval_asking import Asking

PIXEL = "data:image/png;base64," + base64.b64encode(pictures.png(1, 1, 8, 0, b"\0\0")).decode()
RIGHT: dict[str, Any] = {
    "model": "m",
    "messages": [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "What is this?"}]},
        {"role": "assistant", "content": "A star."},
        {
            "role": "user",
            "content": [
                {"type": "image_url", "image_url": {"url": PIXEL, "detail": "low"}},
                {"type": "text", "text": "And its colour?"},
            ],
        },
    ],
    "max_tokens": 16,
    "max_completion_tokens": 16,
    "temperature": 0.0,
    "top_p": 1,
    "top_k": None,
    "seed": 1,
    "stop": ["\n"],
    "stream": True,
    "stream_options": {"include_usage": True},
    "preset": "fast",
    "include_drafts": False,
    "block_length": 8,
    "max_denoising_steps": 8,
    "threshold": 0.9,
    "remasking": "low_confidence",
    "guidance_scale": 1.0,
    "prompt_refresh_interval": None,
    "use_cache": "prompt",
    "live_prompt_length": 64,
    "no_repeat_ngram_size": 3,
    "n": 1,
    "logit_bias": {},
    "response_format": {"type": "text"},
    "tools": [],
    "user": "someone",
}
urls = pictures.urls | st.sampled_from(
    ("file:///etc/passwd", "http://127.0.0.1:1/x", "/etc/passwd", "DATA:image/png;base64,")
)
shown = st.builds(
    lambda url, text: {
        "model": "m",
        "messages": [
            {
                "role": "user",
                "content": [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": text}],
            }
        ],
    },
    urls,
    texts,
)
some = st.sets(st.sampled_from(sorted(set(RIGHT) - {"model", "messages"}))).map(
    lambda names: {name: value for name, value in RIGHT.items() if name not in names}
)
STRATEGY = json_bytes(some | some.flatmap(changed) | changed(RIGHT, most=1) | values) | shown.map(
    lambda body: json.dumps(body).encode()
)
LIMITS = Limits(tokens=64, pictures=2, picture_bytes=4096, pixels=pictures.MAX_PIXELS, characters=2000)


@cache
def assistant() -> Any:
    """The bundled checkpoint."""
    return asking.load(device="cpu")


def check(case: bytes, place: Path) -> str:
    """Read it as the server does: the body, what is asked of the loop, the chat, and its pictures."""
    request = attempt(ChatRequest.model_validate_json, case, refusals=ValidationError)
    if isinstance(request, Exception):
        return outcome(request)
    settings = attempt(read_settings, request, assistant(), Asking(), LIMITS, refusals=RequestError)
    messages = attempt(read_messages, request, LIMITS, 56, refusals=RequestError)
    if isinstance(settings, Exception) or isinstance(messages, Exception):
        return "refused"
    if not 0 < settings.max_tokens <= LIMITS.tokens:
        raise Finding(f"max_tokens={settings.max_tokens} came through")
    chat = attempt(messages, refusals=RequestError)
    if isinstance(chat, Exception):
        return outcome(chat)
    return outcome(attempt(assistant().processor.apply_chat_template, chat, add_generation_prompt=True, tokenize=True))
