"""Chats as anybody may write them: roles, contents and parts of any kind, and text that would be a template."""

from functools import cache
from pathlib import Path
from typing import Any

from hypothesis import strategies as st
from PIL import Image

from fuzzing import MARKUP, Finding, attempt, outcome, texts, values
from transformers_lladav import BUNDLED_CHECKPOINT, LladaVProcessor

PICTURE = Image.new("RGB", (40, 30), (200, 10, 10))

roles = st.sampled_from(("user", "assistant", "system", "user<|eot_id|>")) | values
parts = (
    st.fixed_dictionaries({"type": st.just("text"), "text": texts})
    | st.just({"type": "image", "image": PICTURE})
    | st.fixed_dictionaries({"type": st.just("image"), "image": values})
    | st.fixed_dictionaries(
        {"type": st.sampled_from(("text", "image", "video", "audio", "tool")) | values, "text": values}
    )
    | values
)
contents = texts | st.lists(parts, max_size=3) | values
messages = st.fixed_dictionaries({"role": roles, "content": contents}) | values
honest = st.fixed_dictionaries(
    {
        "role": st.sampled_from(("user", "assistant", "system")),
        "content": texts | st.lists(st.fixed_dictionaries({"type": st.just("text"), "text": texts}), max_size=3),
    }
)
chats = st.lists(honest, min_size=1, max_size=3) | st.lists(messages, max_size=3) | values
STRATEGY = st.tuples(
    chats | st.lists(chats, max_size=2),
    st.fixed_dictionaries(
        {},
        optional={
            "add_generation_prompt": st.booleans(),
            "continue_final_message": st.booleans(),
            "tokenize": st.booleans(),
        },
    ),
)


@cache
def processor() -> LladaVProcessor:
    """That of the bundled checkpoint."""
    return LladaVProcessor.from_pretrained(BUNDLED_CHECKPOINT)


def check(case: Any, place: Path) -> str:
    """Make a prompt of it; no text of a message may have become a control token."""
    chat, options = case
    options = {**options, "return_dict": True} if options.get("tokenize") else options
    result = attempt(processor().apply_chat_template, chat, **options)
    if isinstance(result, Exception) or not _is_honest(chat):
        return outcome(result)
    tokenizer, added = processor().tokenizer, bool(options.get("add_generation_prompt"))
    ids = result["input_ids"][0] if options.get("tokenize") else tokenizer(result, add_special_tokens=False).input_ids
    headers = len(chat) + (chat[0]["role"] != "system") + added
    ends = headers - added - bool(options.get("continue_final_message"))
    for token, expected in (("<|start_header_id|>", headers), ("<|eot_id|>", ends), ("<|mdm_mask|>", 0)):
        if (found := list(ids).count(tokenizer.convert_tokens_to_ids(token))) != expected:
            raise Finding(f"{found} {token}, not {expected}, in {chat!r}")
    for message in chat if not options else ():
        if message["content"] in MARKUP and message["content"] not in result:
            raise Finding(f"{message['content']!r} does not stand in the prompt as it was typed")
    return "taken"


def _is_honest(chat: Any) -> bool:
    """Whether it is one chat of text alone."""

    def plain(content: Any) -> bool:
        if isinstance(content, list):
            return all(isinstance(part, dict) and part.get("type") == "text" for part in content)
        return isinstance(content, str)

    return (
        isinstance(chat, list)
        and bool(chat)
        and all(
            isinstance(message, dict) and isinstance(message.get("role"), str) and plain(message.get("content"))
            for message in chat
        )
    )
