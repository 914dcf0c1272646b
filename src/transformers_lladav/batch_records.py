"""Records to answer: questions about pictures, read one after the other, with or without answers of their own."""

from collections.abc import Mapping
from typing import Any

from .eval_tasks import with_answer
from .media import MediaFolder
from .record_files import RecordError, shown
from .records import DEFAULT_QUESTION, Example, read_record

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
        # Reading asks for an answer; it goes again below.
        answered = with_answer(record, [PLACEHOLDER]) if isinstance(record, Mapping) else record
        example = read_record(answered, raw.source, folder, question)
        if example.messages[-1]["role"] == "assistant":
            del example.messages[-1]
        if not example.messages or example.messages[-1]["role"] != "user":
            raise RecordError("there is no message of the user to answer; add one")
    except RecordError as error:
        raise RecordError(error.reason, raw.source) from error.__cause__
    return example
