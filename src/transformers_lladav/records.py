"""What a record means: its conversation and its pictures, as an example in the chat format of the processor."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from .media import MediaFolder, media_parts
from .record_files import RecordError, columns_looked_for, find_columns, is_picture_name, named, shown

DEFAULT_QUESTION = "Describe the picture."

ROLES = {"user": "user", "assistant": "assistant", "system": "system", "human": "user", "gpt": "assistant"}
KINDS = {"image": "picture", "video": "video"}

# The line feed after a placeholder goes: what stands between a picture and text is the template's business.
_PLACEHOLDER = re.compile(r"<(image|video)>\n?")


@dataclass(frozen=True)
class Example:
    """A conversation to learn from.

    Attributes:
        id: the record's own, or its source.
        messages: dictionaries with a role (system, user or assistant) and a content, which is a list of parts:
            `{"type": "text", "text": ...}`, `{"type": "image", "image": path, URL or PIL image}` and
            `{"type": "video", "video": list of frames, or path of a video file}`; see `media.load_videos` for the
            latter.
        source: file and line, such as "train.jsonl:17".
    """

    id: str
    messages: list[dict[str, Any]]
    source: str

    @property
    def pictures(self) -> list[Any]:
        """The pictures of all messages, in order."""
        return media_parts(self.messages, "image")

    @property
    def videos(self) -> list[Any]:
        """The videos of all messages, in order."""
        return media_parts(self.messages, "video")

    @property
    def turns(self) -> int:
        """How many messages are the assistant's."""
        return sum(message["role"] == "assistant" for message in self.messages)

    @property
    def kind(self) -> str:
        """What it shows: "text", "one picture", "several pictures", or "video", with or without pictures."""
        if self.videos:
            return "video"
        return ("text", "one picture", "several pictures")[min(len(self.pictures), 2)]


def read_record(record: Any, source: str, folder: MediaFolder, question: str = DEFAULT_QUESTION) -> Example:
    """Turn a record into an example; see `data.read_examples` for the formats.

    Args:
        record: what was parsed; an error that parsing ended with is raised.
        source: where it stands.
        folder: where its pictures and videos may lie.
        question: asked where a record has an answer and no question.

    Returns:
        The example.

    Raises:
        RecordError: with the source, what is wrong and how to put it right.
    """
    try:
        if isinstance(record, RecordError):
            raise record
        if not isinstance(record, Mapping):
            raise RecordError(f"a record is an object with keys, not {shown(record)}")
        identity = _identity(record.get("id"), source)
        turns = _turns(record, question)
        messages = [
            {"role": role, "content": _parts(content, f"message {number} ({role})")}
            for number, (role, content) in enumerate(turns, start=1)
        ]
        _place_media(messages, record, folder)
        _check_messages(messages)
    except RecordError as error:
        raise RecordError.of(error, source) from error.__cause__
    return Example(identity, messages, source)


def _identity(value: Any, source: str) -> str:
    if value is None or value == "":
        return source
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise RecordError(f"the id is {shown(value)}, not a text or a whole number")
    return _checked_text(str(value), "the id")


def _turns(record: Mapping[str, Any], question: str) -> list[tuple[str, Any]]:
    """Roles and contents, in whatever format the record has them."""
    for key in ("messages", "conversations"):
        if record.get(key) is None:
            continue
        if not isinstance(record[key], list | tuple) or not record[key]:
            raise RecordError(f"{key!r} is {shown(record[key])}, not a list of messages")
        turns = [_turn(message, number) for number, message in enumerate(record[key], start=1)]
        # Official training leaves out an answer to nothing.
        return turns[1:] if key == "conversations" and turns[0][0] == "assistant" else turns
    return _row_turns(record, question)


def _turn(message: Any, number: int) -> tuple[str, Any]:
    if not isinstance(message, Mapping):
        raise RecordError(f"message {number} is {shown(message)}, not an object with a role and a content")
    role = next((message[key] for key in ("role", "from") if message.get(key) is not None), None)
    if not isinstance(role, str) or role not in ROLES:
        raise RecordError(f"message {number} has the role {shown(role)}; use one of {', '.join(ROLES)}")
    return ROLES[role], next((message[key] for key in ("content", "value") if message.get(key) is not None), None)


def _row_turns(row: Mapping[str, Any], question: str) -> list[tuple[str, Any]]:
    """The question and the answer of a row of a table."""
    columns = find_columns(row)
    if "answer" not in columns:
        raise RecordError(
            f"the record has neither 'messages' nor 'conversations', nor an answer; its keys are {shown(list(row))}; "
            f"looked for {columns_looked_for('answer')}"
        )
    asked = row[columns["question"]] if "question" in columns else None
    if asked is None or asked == "":
        if not _listed(_media_of(row, "image")):
            raise RecordError(f"the record has no picture and no question; looked for {_LOOKED_FOR}")
        asked = question
    answer = row[columns["answer"]]
    _require_text(answer, "the answer")
    return [("user", asked), ("assistant", [{"type": "text", "text": answer}])]


_LOOKED_FOR = columns_looked_for("picture", "question")


def _parts(content: Any, where: str) -> list[dict[str, Any]]:
    """A content as a list of parts; pictures that are only announced have no entry but their type."""
    if isinstance(content, str):
        pieces = _PLACEHOLDER.split(_checked_text(content, where))
        parts = [{"type": piece} if i % 2 else {"type": "text", "text": piece} for i, piece in enumerate(pieces)]
        return [part for part in parts if part.get("text") != ""]
    if isinstance(content, list | tuple):
        return [_part(part, where) for part in content]
    if content is None:
        raise RecordError(f"{where} has no content")
    raise RecordError(f"{where} is {named(content)}, not a text or a list of parts")


def _part(part: Any, where: str) -> dict[str, Any]:
    kind = part.get("type") if isinstance(part, Mapping) else None
    if kind == "text":
        _require_text(part.get("text"), f"a text of {where}")
        return {"type": "text", "text": _checked_text(part["text"], where)}
    if isinstance(kind, str) and kind in KINDS:
        held = next((part[key] for key in (kind, "path", "url") if part.get(key) is not None), None)
        return {"type": kind} if held is None else {"type": kind, kind: held}
    raise RecordError(f"{where} has a part {shown(part)}; a part is an object with the type text, image or video")


def _require_text(value: Any, what: str) -> None:
    if not isinstance(value, str):
        raise RecordError(f"{what} is missing" if value is None else f"{what} is {named(value)}, not a text")


def _checked_text(text: str, where: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise RecordError(
            f"{where} holds {text[error.start]!r}, half of a character, which no text may; remove it"
        ) from error
    return text


def _media_of(record: Mapping[str, Any], kind: str) -> Any:
    """What a record says its pictures or videos are."""
    row = record.get("messages") is None and record.get("conversations") is None
    keys = [kind, f"{kind}s"]
    if row and kind == "image":
        keys = [*keys, *filter(None, [find_columns(record).get("picture")])]
    given = {key: record[key] for key in keys if _given(record.get(key))}
    if len(given) > 1:
        raise RecordError(f"the record has {' and '.join(map(repr, given))}; give one of them")
    return next(iter(given.values()), None)


def _given(value: Any) -> bool:
    return value is not None and not (isinstance(value, str | list | tuple | Mapping) and not value)


def _listed(value: Any) -> list[Any]:
    if value is None:
        return []
    return list(value) if isinstance(value, list | tuple) else [value]


def _videos(value: Any) -> list[Any]:
    """The videos of a record; a list of pictures is one video."""
    videos = _listed(value)
    names_frames = all(isinstance(video, str) and is_picture_name(video) for video in videos)
    holds_frames = isinstance(value, list | tuple) and not any(isinstance(v, str | list | tuple) for v in videos)
    return [videos] if videos and isinstance(value, list | tuple) and (names_frames or holds_frames) else videos


def _place_media(messages: list[dict[str, Any]], record: Mapping[str, Any], folder: MediaFolder) -> None:
    """Put the pictures and videos of a record where their placeholders stand."""
    given = {"image": _listed(_media_of(record, "image")), "video": _videos(_media_of(record, "video"))}
    parts = [part for message in messages for part in message["content"]]
    kinds = {part["type"] for part in parts}
    if given["video"] and not given["image"] and "video" not in kinds:
        for part in parts:  # LLaVA's video data write <image> for a video
            if part == {"type": "image"}:
                part["type"] = "video"
        kinds = {part["type"] for part in parts}
    for kind in ("video", "image"):  # pictures go before videos
        if given[kind] and kind not in kinds:
            _put_first(messages, kind, len(given[kind]))
    for kind, resolve in (("image", folder.picture), ("video", folder.video)):
        of_kind = [part for message in messages for part in message["content"] if part["type"] == kind]
        empty = [part for part in of_kind if kind not in part]
        if len(empty) != len(given[kind]):
            _refuse_counts(kind, len(empty), len(given[kind]))
        for part, item in zip(empty, given[kind], strict=True):
            part[kind] = item
        for part in of_kind:
            part[kind] = resolve(part[kind])


def _put_first(messages: list[dict[str, Any]], kind: str, count: int) -> None:
    message = next((message for message in messages if message["role"] == "user"), None)
    if message is None:
        raise RecordError(f"the record has a {KINDS[kind]} and no user message for it to stand in; add one")
    message["content"][:0] = [{"type": kind} for _ in range(count)]


def _refuse_counts(kind: str, placeholders: int, given: int) -> NoReturn:
    raise RecordError(
        f"{placeholders} <{kind}> placeholder{'s' * (placeholders != 1)} for {given} "
        f"{KINDS[kind]}{'s' * (given != 1)}; give one each (a literal <{kind}> is written in a text part of the chat "
        "format)"
    )


def _check_messages(messages: Sequence[Mapping[str, Any]]) -> None:
    for number, message in enumerate(messages, start=1):
        role, content = message["role"], message["content"]
        if role == "system" and number > 1:
            raise RecordError(f"message {number} is the system's; a system message comes first, and once")
        words = any(part["type"] == "text" and part["text"].strip() for part in content)
        if role == "assistant" and not words:
            raise RecordError(f"message {number} (assistant) is an empty answer; give it a text")
        if not words and not any(part["type"] != "text" for part in content):
            raise RecordError(f"message {number} ({role}) is empty; give it a text or a picture")
    if not any(message["role"] == "assistant" for message in messages):
        raise RecordError("the record has no assistant message to learn from; add an answer")
