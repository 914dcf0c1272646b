"""A task gone through once: bad records found, and what is noted of the others while their pictures stay on disk."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

from PIL import Image

from .eval_tasks import Task
from .media import Size, check_media, media_parts
from .record_files import RecordError

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Entry:
    """What is remembered of a question while its pictures stay on disk.

    Attributes:
        kind: as the question's.
        metric: as the question's.
        sizes: (height, width) of its pictures.
        layout: "image" or "video" for each of its pictures and videos.
        shows: tells them from those of other questions: paths, or digests of what is in no file; empty without any.
    """

    kind: str
    metric: str
    sizes: tuple[Size, ...]
    layout: tuple[str, ...]
    shows: tuple[str, ...]


@dataclass(frozen=True)
class Survey:
    """A task that was gone through once.

    Attributes:
        entries: one per question.
        digest: of everything that is asked and expected.
    """

    entries: list[Entry]
    digest: str


def survey(task: Task, on_progress: Progress | None = None) -> Survey:
    """Go through a task once: find bad records before anything slow happens, and note what is needed of the others.

    Args:
        task: from `open_tasks`.
        on_progress: is told how many questions were read and how many there are.

    Returns:
        What was noted.

    Raises:
        RecordError: at the first record that cannot be used, with file and line.
    """
    entries, digest = [], blake2b(digest_size=16)
    report = on_progress or (lambda done, total: None)
    for number, question in enumerate(task.questions):
        try:
            sizes = tuple(check_media(question.messages))
        except RecordError as error:
            raise RecordError(error.reason, question.source) from error.__cause__
        media = [part for message in question.messages for part in message["content"] if part["type"] != "text"]
        shows = tuple(shown for part in media for shown in _shown_by(part[part["type"]]))
        entries.append(Entry(question.kind, question.metric, sizes, tuple(part["type"] for part in media), shows))
        files = [_without_folder(item) for item in shows]
        words = [part.get("text") for message in question.messages for part in message["content"]]
        rules = (question.kind, question.metric, question.accepted, question.choices, question.mark)
        digest.update(json.dumps([question.id, words, sizes, files, *rules]).encode())
        report(number + 1, len(task.questions))
    return Survey(entries, digest.hexdigest())


def _shown_by(source: Any) -> list[str]:
    """What tells a picture or the frames of a video from others: the path of a file, else a digest of its content."""
    if isinstance(source, list):
        return [shown for frame in source for shown in _shown_by(frame)]
    if isinstance(source, Image.Image):
        return [blake2b(source.mode.encode() + source.tobytes(), digest_size=8).hexdigest()]
    return [source if _is_path(source) else blake2b(source.encode(), digest_size=8).hexdigest()]


def _is_path(source: str) -> bool:
    return Path(source).is_absolute()  # `MediaFolder` resolves them; URLs are never


def _without_folder(shown: str) -> str:
    """Name and size of a file, which stay when its folder moves, and change when another file takes its place."""
    return f"{Path(shown).name}:{Path(shown).stat().st_size}" if _is_path(shown) else shown


def other_pictures(entries: Sequence[Entry]) -> list[int | None]:
    """Whose pictures each question is asked about when it is asked blind.

    Args:
        entries: of a task.

    Returns:
        For each question the number of the next of the same kind with as many pictures and videos, and other ones;
        None where there is no such question.
    """
    groups: dict[tuple[str, tuple[str, ...]], list[int]] = {}
    for number, entry in enumerate(entries):
        groups.setdefault((entry.kind, entry.layout), []).append(number)
    partners: list[int | None] = [None] * len(entries)
    for (_, layout), numbers in groups.items():
        if not layout:
            continue
        following: int | None = None  # the nearest after a question that shows something else, once around
        rounds = numbers + numbers
        for number, after in zip(reversed(rounds[:-1]), reversed(rounds[1:]), strict=True):
            if entries[after].shows != entries[number].shows:
                following = after
            partners[number] = following
    return partners


def with_pictures(messages: Sequence[dict[str, Any]], other: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """A chat about the pictures and videos of another.

    Args:
        messages: the chat.
        other: a chat that shows as many.

    Returns:
        A new chat.
    """
    sources = {kind: iter(media_parts(other, kind)) for kind in ("image", "video")}

    def replaced(part: dict[str, Any]) -> dict[str, Any]:
        kind = part["type"]
        return part if kind == "text" else {**part, kind: next(sources[kind])}

    return [{**message, "content": [replaced(part) for part in message["content"]]} for message in messages]
