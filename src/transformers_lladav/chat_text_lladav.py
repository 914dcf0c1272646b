"""Text that stays text: control tokens that somebody typed, and the holes of an infilled answer.

A control token in a chat's contents is split by `MARK`, a Unicode noncharacter, so that the tokenizer does not see it
as one: added tokens are looked for before normalisation. The normalizer then deletes the mark, and what is left is
tokenised, and decoded, as the text that was typed.
"""

import re
import reprlib
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Any, NamedTuple

from tokenizers import normalizers, pre_tokenizers
from transformers import AddedToken

MARK = "\ufdd0"
SEAM = "\ufdd1"  # no token reaches over it
MAX_HOLE = 65536

MEDIA_PARTS = ("image", "image_url", "video", "video_url", "audio")
MEDIA_KEYS = (*MEDIA_PARTS, "url", "path", "base64")

TOO_DEEP = "what a chat, its tools or its documents hold is nested too deeply; hundreds of levels are not text"

_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 80
_SHORT.maxlevel = 2

HOLE = re.compile(r" ?\[MASK:([^\[\]]*)(\]?)")


class _Matcher(NamedTuple):
    """How control tokens are found in text."""

    starts: re.Pattern[str]  # the first character of a token whose other characters follow
    first: frozenset[str]
    single: frozenset[str]
    longest: int


@lru_cache(maxsize=16)
def _matcher(tokens: tuple[str, ...]) -> _Matcher:
    rests: dict[str, list[str]] = {}
    for token in tokens:
        rests.setdefault(token[0], []).append(re.escape(token[1:]))
    starts = "|".join(f"{re.escape(first)}(?={'|'.join(rest)})" for first, rest in rests.items())
    single = frozenset(token for token in tokens if len(token) == 1)
    return _Matcher(re.compile(starts or "(?!)"), frozenset(rests), single, max(map(len, tokens), default=0))


def escape(text: str, tokens: tuple[str, ...], placeholders: tuple[str, ...] = ()) -> str:
    """Make the control tokens in a text plain text.

    A mark is put after the first character of every control token, overlapping ones too, and of the beginning of one
    at the end of the text, which the text after it could complete. Marks and seams that were typed are removed.

    Args:
        text: what somebody typed.
        tokens: the control tokens.
        placeholders: those of them that keep their meaning.

    Returns:
        The text with marks, which a tokenizer that `prepare_tokenizer` has seen deletes.

    Raises:
        ValueError: if a control token of a single character stands in the text; nothing fits into it.
    """
    if placeholders:
        pieces = re.split("(" + "|".join(map(re.escape, placeholders)) + ")", text)
        return "".join(piece if piece in placeholders else escape(piece, tokens) for piece in pieces)
    text = text.replace(MARK, "").replace(SEAM, "")
    matcher = _matcher(tokens)
    if typed := matcher.single.intersection(text):
        raise ValueError(
            f"the text holds the control token {min(typed)!r}; a control token of one character cannot be made text: "
            "remove it from the text, or pass sanitize_control_tokens=False"
        )
    end = len(text.rstrip())  # templates trim
    for start in range(end - 1, max(end - matcher.longest, -1), -1):
        if text[start] in matcher.first and any(token.startswith(text[start:end]) for token in tokens):
            text = text[: start + 1] + MARK + text[start + 1 :]
            end += 1
    return matcher.starts.sub(rf"\g<0>{MARK}", text)


def escape_all(value: Any, tokens: tuple[str, ...]) -> Any:
    """Escape every string of nested lists and dictionaries.

    Args:
        value: anything that a template may read.
        tokens: the control tokens.

    Returns:
        A copy; what is no string, list, tuple or mapping is the caller's own object.

    Raises:
        ValueError: if it is nested hundreds of levels deep.
    """
    try:
        return _escape_all(value, tokens)
    except RecursionError as error:
        raise ValueError(TOO_DEEP) from error


def _escape_all(value: Any, tokens: tuple[str, ...]) -> Any:
    if isinstance(value, str):
        return escape(value, tokens)
    if isinstance(value, Mapping):
        return {_escape_all(key, tokens): _escape_all(entry, tokens) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        entries = [_escape_all(entry, tokens) for entry in value]
        return entries if isinstance(value, list) else tuple(entries)
    return value


def escape_chat(
    chat: Iterable[Any], tokens: tuple[str, ...], placeholders: tuple[str, ...] = ()
) -> list[dict[str, Any]]:
    """Escape the messages of a chat: contents, roles and whatever else they hold.

    Args:
        chat: the messages.
        tokens: the control tokens.
        placeholders: those that keep their meaning in contents that are strings.

    Returns:
        A copy of the chat; pictures and videos in it, and where they lie, are the caller's own objects.

    Raises:
        TypeError: if a message is no dictionary.
    """
    messages = []
    for index, message in enumerate(chat):
        if not isinstance(message, Mapping):
            raise TypeError(
                f"message {index} is a {type(message).__name__}; give a dictionary with the keys role and content"
            )
        plain = {key: entry if key == "content" else escape_all(entry, tokens) for key, entry in message.items()}
        content = plain.get("content")
        if isinstance(content, str):
            plain["content"] = escape(content, tokens, placeholders)
        elif isinstance(content, list | tuple):
            plain["content"] = [_escape_part(part, tokens) for part in content]
        else:
            plain["content"] = escape_all(content, tokens)
        messages.append(plain)
    return messages


def _escape_part(part: Any, tokens: tuple[str, ...]) -> Any:
    """Escape a part of a content, but for where a picture or video lies."""
    if isinstance(part, Mapping) and part.get("type") in MEDIA_PARTS:
        return {key: entry if key in MEDIA_KEYS else escape_all(entry, tokens) for key, entry in part.items()}
    return escape_all(part, tokens)


def prepare_tokenizer(tokenizer: Any, added: Iterable[str], known: Iterable[str] = ()) -> tuple[str, ...]:
    """Let a tokenizer delete marks, see control tokens only where no mark is, and cut its text at seams.

    Args:
        tokenizer: a tokenizer of the tokenizers library; it is changed, once.
        added: control tokens that it gets if it lacks them.
        known: control tokens only if it has them.

    Returns:
        All control tokens: these and the special tokens of the tokenizer.

    Raises:
        TypeError: if the tokenizer is another one.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise TypeError(
            f"the tokenizer is a {type(tokenizer).__name__}, which has no backend of the tokenizers library; load it "
            "with AutoTokenizer.from_pretrained"
        )
    entries = {entry.content: entry for entry in tokenizer.added_tokens_decoder.values()}
    named = {*added, *(token for token in known if backend.token_to_id(token) is not None)}
    control = named | {token for token, entry in entries.items() if entry.special}
    changed = []
    for token in sorted(control):
        entry = entries.get(token)
        # A token that is matched after normalisation would be found again where its mark was.
        if entry is None:
            changed.append(AddedToken(token, normalized=False, special=True))
        elif entry.normalized:
            options = {name: getattr(entry, name) for name in ("single_word", "lstrip", "rstrip")}
            changed.append(AddedToken(token, normalized=False, special=True, **options))
    if changed:
        tokenizer.add_tokens(changed, special_tokens=True)
    first = backend.normalizer
    if first is None:
        backend.normalizer = normalizers.Replace(MARK, "")
    elif first.normalize_str(f"a{MARK}b") != first.normalize_str("ab"):
        backend.normalizer = normalizers.Sequence([normalizers.Replace(MARK, ""), first])
    cut, before = pre_tokenizers.Split(SEAM, "removed"), backend.pre_tokenizer
    if before is None:
        backend.pre_tokenizer = cut
    elif _joined(before, f"a{SEAM}b") != _joined(before, "ab"):
        backend.pre_tokenizer = pre_tokenizers.Sequence([cut, before])
    return tuple(sorted(control))


def _joined(pre_tokenizer: Any, text: str) -> str:
    return "".join(piece for piece, _ in pre_tokenizer.pre_tokenize_str(text))


def set_apart(conversation: Any) -> Any:
    """Put a seam before every answer in a chat.

    An answer is written behind the header of its message, whose line feeds are tokens of their own by then. Where the
    same answer is read again, to be continued, filled in or remembered, its tokens must be the same, and some
    tokenizers would join line feeds and words otherwise.

    Args:
        conversation: a chat or a batch of chats.

    Returns:
        A copy; the seams vanish when the chat is tokenised.
    """
    chats, batched = as_batch(conversation)
    copies = [[_with_seam(message) for message in chat] for chat in chats]
    return copies if batched else copies[0]


def _with_seam(message: Any) -> Any:
    content = message.get("content")
    if message.get("role") != "assistant" or not content:
        return message
    if isinstance(content, str):
        return {**message, "content": SEAM + content.lstrip()}
    first, *others = content
    if isinstance(first, Mapping) and isinstance(first.get("text"), str):
        first = {**first, "text": SEAM + first["text"].lstrip()}
    return {**message, "content": [first, *others]}


def split_holes(text: str) -> list[str | int]:
    """Read the holes `[MASK:n]` of a text.

    Args:
        text: such as `Because [MASK:20], the answer is [MASK:3].`

    Returns:
        The pieces of text in order, and for each hole its number of tokens; a single space before it is dropped.

    Raises:
        ValueError: if a hole's length is no whole number from 1 on, or its bracket is not closed.
    """
    pieces: list[str | int] = []
    done = 0
    for match in HOLE.finditer(text):
        length, closed = match.groups()
        if not (closed and re.fullmatch("0*[1-9][0-9]{0,5}", length) and int(length) <= MAX_HOLE):
            raise ValueError(
                f"{match[0].strip()[:40]!r} is no hole; a hole has a whole number of tokens from 1 to {MAX_HOLE} and "
                "a closing bracket: write [MASK:8] for eight tokens"
            )
        pieces += [text[done : match.start()], int(length)]
        done = match.end()
    return [*pieces, text[done:]]


def text_with_holes(chat: Any, index: int = 0) -> str:
    """The last message of a chat, which must be the assistant's and have a hole.

    Args:
        chat: the messages.
        index: number of the chat in its batch, for errors.

    Returns:
        Its content as one string.

    Raises:
        ValueError: if it is somebody else's, has other parts than text, or has no hole or a malformed one.
    """
    last = chat[-1] if chat and isinstance(chat[-1], Mapping) else {}
    role, content = last.get("role"), last.get("content")
    if role != "assistant":
        raise ValueError(
            f"the last message of chat {index} has the role {role!r}; holes are filled only in a last message of the "
            "assistant: put one there"
        )
    parts = content if isinstance(content, list | tuple) else [{"type": "text", "text": content}]
    entries = [part.get("text") for part in parts if isinstance(part, Mapping) and part.get("type") == "text"]
    texts = [entry for entry in entries if isinstance(entry, str)]
    if len(texts) != len(parts):
        raise ValueError(
            f"the last message of chat {index} has the content {content!r}; give a string, or a list of parts of type "
            "text"
        )
    text = "".join(texts)
    if len(split_holes(text)) > 1:
        return text
    others = " There are some in other messages, where they are text." if "[MASK:" in str(chat[:-1]) else ""
    raise ValueError(
        f"the last message of chat {index} is {text!r}, without a hole; holes are filled only in the last message of "
        f"the assistant: write [MASK:8] there for eight tokens.{others}"
    )


def check_continuable(conversation: Any) -> None:
    """Refuse chats whose last message has nothing to be continued.

    Trimming would take the line feeds of its header along.

    Args:
        conversation: a chat or a batch of chats.

    Raises:
        ValueError: if there is no text in a last message.
    """
    for index, chat in enumerate(as_batch(conversation)[0]):
        content = chat[-1].get("content") if chat else None
        parts = content if isinstance(content, list | tuple) else [{"text": content}]
        if not any(isinstance(part, Mapping) and str(part.get("text") or "").strip() for part in parts):
            raise ValueError(
                f"the last message of chat {index} has the content {content!r}, which leaves nothing to continue; "
                "leave the message out and pass add_generation_prompt=True"
            )


def as_batch(conversation: Any) -> tuple[Any, bool]:
    """Bring one chat to a batch of chats.

    Args:
        conversation: a list of messages, or a list of such lists.

    Returns:
        The chats, and whether they were a batch already.
    """
    batched = isinstance(conversation, list | tuple) and isinstance(next(iter(conversation), None), list | tuple)
    return conversation if batched else [conversation], batched


def as_texts(text: Any) -> list[str] | None:
    """Bring one text to a list of texts.

    Args:
        text: a text, several, or None.

    Returns:
        The texts; None for None.

    Raises:
        ValueError: if there is none among them, or something else.
    """
    if text is None:
        return None
    texts = [text] if isinstance(text, str) else list(text) if isinstance(text, Iterable) else []
    if not texts or not all(isinstance(item, str) for item in texts):
        raise ValueError(f"text={text!r:.80} must be a text or a list of at least one")
    return texts


def check_chats(conversation: Any) -> Any:
    """Refuse what no template can make a prompt of, in words that name the message.

    Args:
        conversation: a chat or a batch of chats; a message may lack a content, which some templates do without.

    Returns:
        The same; a single chat that is no list, such as a generator, as a list.

    Raises:
        TypeError: if a chat is no list of dictionaries.
        ValueError: if there is no chat or no message, or if a role, a content or a part of one is no such thing.
    """
    if isinstance(conversation, str | bytes | Mapping) or not isinstance(conversation, Iterable):
        raise TypeError(f"a chat is a list of messages, not {_named(conversation)}")
    conversation = conversation if isinstance(conversation, list | tuple) else list(conversation)
    chats, batched = as_batch(conversation)
    for number, chat in enumerate(chats):
        of_chat = f" of chat {number}" if batched else ""
        if not isinstance(chat, list | tuple):
            raise TypeError(f"chat {number} is a list of messages, not {_named(chat)}")
        if not chat:
            raise ValueError(f"the chat{of_chat[8:]} has no messages; give at least one")
        for index, message in enumerate(chat):
            if not isinstance(message, Mapping):
                kind = type(message).__name__
                raise TypeError(f"message {index} is a {kind}; give a dictionary with the keys role and content")
            _check_message(message, f"message {index}{of_chat}")
    return conversation


def _check_message(message: Mapping[Any, Any], where: str) -> None:
    role, content = message.get("role"), message.get("content")
    if not isinstance(role, str):
        raise ValueError(f"{where} has the role {_named(role)}; give a text such as 'user'")
    if content is not None and not isinstance(content, str | list | tuple):
        raise ValueError(f"{where} has the content {_named(content)}; give a text or a list of parts")
    texts = [role] + ([content] if isinstance(content, str) else [])
    for part in content if isinstance(content, list | tuple) else ():
        if not isinstance(part, Mapping) or not isinstance(part.get("type"), str):
            raise ValueError(
                f"{where} has the part {_named(part)}; give a dictionary such as {{'type': 'text', 'text': 'Hello'}}"
            )
        if part["type"] == "text":
            if not isinstance(part.get("text"), str):
                raise ValueError(f"{where} has a part of type text whose text is {_named(part.get('text'))}")
            texts.append(part["text"])
    for text in texts:
        try:
            text.encode()
        except UnicodeEncodeError as error:
            half = text[error.start]
            raise ValueError(f"{where} holds {half!r}, half of a character, which no text may; remove it") from error


def _named(value: Any) -> str:
    shown = _SHORT.repr(value)
    return shown if value is None or isinstance(value, str | int | float) else f"the {type(value).__name__} {shown}"


def given_any(items: Any) -> bool:
    """Whether pictures or videos were given: something, and no empty list."""
    return items is not None and not (isinstance(items, list | tuple) and not items)
