"""Records to answer: questions about pictures, read one after the other, with or without answers of their own."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .media import MediaFolder
from .record_files import RecordError, find_columns, shown
from .records import DEFAULT_QUESTION, ROLES, Example, read_record

PLACEHOLDER = "?"  # stands for an answer while a record is read


def read_prompt(raw: Any, folder: MediaFolder, column: str, question: str = DEFAULT_QUESTION) -> Example:
    """Turn a record into a chat to answer.

    Args:
        raw: the record with its source; in any of the formats of `data.read_examples`. An answer that it ends with
            is left out.
        folder: where its pictures and videos may lie.
        column: where the model's answer will stand.
        question: asked where it has none.

    Returns:
        A chat that ends with the user's message.

    Raises:
        RecordError: with file and line, what is wrong and how to put it right.
    """
    record = raw.value
    try:
        if isinstance(record, Mapping) and column in record:
            raise RecordError(
                f"the record has {column!r} already ({shown(record[column])}); pass --column with another name"
            )
        example = read_record(_answered(record), raw.source, folder, question)
        if example.messages[-1]["role"] == "assistant":
            del example.messages[-1]
        if not example.messages or example.messages[-1]["role"] != "user":
            raise RecordError("there is no message of the user to answer; add one")
    except RecordError as error:
        raise RecordError(error.reason, raw.source) from error.__cause__
    return example


def _answered(record: Any) -> Any:
    """A record with an answer, which reading asks for."""
    if not isinstance(record, Mapping):
        return record
    for key in ("messages", "conversations"):
        turns = record.get(key)
        if turns is None:
            continue
        last = turns[-1] if isinstance(turns, list | tuple) and turns else None
        if not isinstance(last, Mapping):
            return record
        role = last.get("role") or last.get("from")
        if isinstance(role, str) and ROLES.get(role) == "assistant":
            return record
        return {**record, key: [*turns, {"role": "assistant", "content": PLACEHOLDER}]}
    column = find_columns(record).get("answer")
    return record if column is not None and record[column] else {**record, column or "answer": PLACEHOLDER}


def media_folder(path: Path, image_folder: Path | None, allow_outside: bool, allow_urls: bool) -> MediaFolder:
    """Where the pictures of a file's records may lie.

    Args:
        path: the file, or a folder.
        image_folder: where their paths start; beside the file by default.
        allow_outside: let paths leave it.
        allow_urls: let pictures be http(s) URLs.

    Returns:
        The folder.

    Raises:
        FileNotFoundError: if it is none.
    """
    root = image_folder or (path if path.is_dir() else path.parent)
    if not root.is_dir():
        raise FileNotFoundError(f"the image folder {root} is not there; pass --image-folder")
    return MediaFolder(root.absolute(), allow_outside, allow_urls)
