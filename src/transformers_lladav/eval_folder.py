"""The folder of an evaluation: what it is about, and the answers so far, a line each."""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from .eval_asking import Answer, Key
from .files import content_of, held, write_text
from .run_records import differences, read_record

SETTINGS, ANSWERS = "settings.json", "answers.jsonl"


def check_folder(folder: Path, record: Mapping[str, Any]) -> None:
    """Refuse a folder that holds something else than this run.

    Args:
        folder: of the output.
        record: of what it is about, from `eval_run.describe`.

    Raises:
        FileExistsError: if it holds other files and no evaluation.
        ValueError: if it holds another evaluation, naming the differences.
    """
    path = folder / SETTINGS
    if not path.is_file():
        if folder.exists() and (not folder.is_dir() or content_of(folder)):
            raise FileExistsError(
                f"{folder} holds other files and no evaluation; choose another --output folder or empty it"
            )
        return
    earlier = read_record(path)
    if found := list(differences(earlier, record)):
        raise ValueError(
            f"{folder} holds another evaluation: {'; '.join(found[:5])}. Repeat the command it was begun with "
            "to go on, or choose another --output folder"
        )


@contextmanager
def begun(folder: Path, record: Mapping[str, Any]) -> Iterator[None]:
    """The folder of a run, for one run alone, without lines that were half written.

    Args:
        folder: of the run; made if it is not there.
        record: of what it is about, from `eval_run.describe`.

    Yields:
        Nothing.

    Raises:
        FileExistsError: as of `check_folder`.
        ValueError: if another run holds it, or it holds another evaluation.
    """
    with held(folder, "evaluation"):
        check_folder(folder, record)  # again: another run may have begun and ended here meanwhile
        if not (folder / SETTINGS).is_file():
            write_text(folder / SETTINGS, json.dumps(record, indent=2) + "\n")
        for path in answer_files(folder):
            content = path.read_bytes()
            if not content.endswith(b"\n"):
                os.truncate(path, content.rfind(b"\n") + 1)
        yield


def answer_files(folder: Path) -> list[Path]:
    """Where the processes of a run, or of the runs before it, wrote their answers.

    Args:
        folder: of the run.

    Returns:
        The files, that of the first process first.
    """
    return sorted(folder.glob("answers*.jsonl"), key=lambda path: (path.name != ANSWERS, path.name))


def read_answers(folder: Path) -> list[Answer]:
    """All answers of a run, each once.

    Args:
        folder: of the run.

    Returns:
        The answers, in the order of the questions.

    Raises:
        ValueError: for a line that is none, naming it.
    """
    found: dict[Key, Answer] = {}
    for path in answer_files(folder):
        for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), start=1):
            if not line:
                continue
            try:
                answer = Answer(**json.loads(line))
            except (ValueError, TypeError) as error:
                raise ValueError(
                    f"{path}:{number} is no answer ({error}); remove the line, and its question is asked again"
                ) from error
            found.setdefault(answer.key, answer)
    return [found[key] for key in sorted(found)]


def as_lines(answers: Sequence[Answer]) -> str:
    """Answers as they stand in files.

    Args:
        answers: any number.

    Returns:
        A line of JSON for each.
    """
    return "".join(json.dumps(asdict(answer), ensure_ascii=False) + "\n" for answer in answers)


def merge_answers(folder: Path, answers: Sequence[Answer]) -> None:
    """Put all answers into the file of the first process, and remove those of the others.

    Args:
        folder: of the run.
        answers: all of them.
    """
    write_text(folder / ANSWERS, as_lines(answers))
    for path in answer_files(folder):
        if path.name != ANSWERS:
            path.unlink()
