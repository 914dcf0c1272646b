"""What an evaluation asks: the suite's questions, or a user's own records, one after the other from disk.

A task is one split of the suite (`suite:test`, or `suite:test/count,ocr` for some kinds) or one file or folder of
records, as `data.read_examples` takes them: the last assistant message is the expected answer, and everything before
it the prompt. Records may have further fields:

    answers   list of texts that are right as well; an answer itself is not needed then
    choices   list of texts to choose from; the answer is one of them, or its letter
    metric    one of `eval_metrics.METRICS`; by default "choice" where there are choices, else "exact_match"
    mark      text after which the answer proper stands in a reply, such as "Answer:"; what is before is not compared
    kind      what results are grouped by; by default what is shown: "text", "one picture" ...
    id        what the question is called in the results; file and line by default
"""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from .eval_metrics import LETTERS, METRICS, NEEDS_CHOICES, Ignored, check_metric, rate
from .media import MediaFolder
from .record_files import DataError, Raw, RecordError, find_columns, load_records, shown
from .records import DEFAULT_QUESTION, ROLES, read_record
from .strict_json import loads

SUITE = "suite"
SUITE_SPLITS = ("test", "unseen_pairs", "more_objects", "unseen_fonts")  # what `suite` alone stands for
QUESTIONS_PER_KIND = 160  # of a split, if nothing limits it
LETTER_REQUEST = "Answer with the letter of the right choice."


@dataclass(frozen=True)
class Question:
    """One question with what answers it.

    Attributes:
        id: its name.
        kind: what results are grouped by.
        messages: the chat up to the question; contents are lists of parts.
        accepted: right answers, the expected one first; of a choice, texts of choices.
        metric: how an answer is rated.
        choices: for the metrics "choice" and "letter".
        source: for messages, such as "mine.jsonl:17".
        mark: where a reply holds this text, what stands before and in it is reasoning and not compared.
    """

    id: str
    kind: str
    messages: list[dict[str, Any]]
    accepted: tuple[str, ...]
    metric: str
    choices: tuple[str, ...]
    source: str
    mark: str | None = None

    @property
    def turns(self) -> list[str]:
        """The words of each message of the user and the assistant, up to the question."""
        return [
            " ".join(part["text"].strip() for part in message["content"] if part["type"] == "text")
            for message in self.messages
            if message["role"] != "system"
        ]

    @property
    def text(self) -> str:
        """The words of the last message."""
        return self.turns[-1]

    def rate(self, reply: str, ignored: Ignored | None = None) -> float:
        """Score what a model says.

        Args:
            reply: the whole of it.
            ignored: what exact match does not look at.

        Returns:
            0 to 1.
        """
        answer = reply.rpartition(self.mark)[2] if self.mark else reply
        return rate(self.metric, answer.strip(), self.accepted, self.choices, ignored)


@dataclass(frozen=True)
class Task:
    """Questions under a name.

    Attributes:
        name: as a user writes it.
        questions: read from disk when they are asked for.
        version: of the suite; None for a user's records.
    """

    name: str
    questions: Sequence[Question]
    version: int | None = None


@dataclass(frozen=True)
class ReadOptions:
    """How a user's records are read; see `data.read_examples`.

    Attributes:
        image_folder: where the pictures' paths start; beside the file by default.
        allow_outside: let paths leave that folder.
        allow_urls: let pictures be http(s) URLs.
        question: asked where a record has only an answer.
    """

    image_folder: Path | None = None
    allow_outside: bool = False
    allow_urls: bool = False
    question: str | None = None

    def media_folder(self, path: Path) -> MediaFolder:
        """Where the pictures of a file's records may lie.

        Args:
            path: the file, or a folder.

        Returns:
            The folder.

        Raises:
            DataError: if it is none.
        """
        root = self.image_folder or (path if path.is_dir() else path.parent)
        if not root.is_dir():
            raise DataError(f"image_folder={str(root)!r} is not a folder")
        return MediaFolder(root.absolute(), self.allow_outside, self.allow_urls)


def open_tasks(
    names: Sequence[str], *, limit: int | None = None, metric: str | None = None, options: ReadOptions | None = None
) -> list[Task]:
    """Open tasks by name.

    Args:
        names: `suite`, `suite:SPLIT`, `suite:SPLIT/KIND,KIND`, or paths of files or folders of records.
        limit: questions of each task at most; without it all records, and 160 per kind of a split.
        metric: replaces every question's own.
        options: how records are read.

    Returns:
        The tasks; `suite` gives one for each of `SUITE_SPLITS`.

    Raises:
        DataError: if a file cannot be read or holds no records.
        ValueError: for an unknown name or metric, a limit below 1, or a task that is named twice.
    """
    if limit is not None and limit < 1:
        raise ValueError(f"limit={limit} leaves no question; give 1 or more")
    if metric is not None:
        check_metric(metric)
    tasks: list[Task] = []
    for name in names:
        if name == SUITE or name.startswith(f"{SUITE}:"):
            tasks += _suite_tasks(name, limit, metric)
        elif Path(name).exists():
            tasks.append(Task(name, FileQuestions(Path(name), options or ReadOptions(), limit, metric)))
        else:
            raise ValueError(
                f"the task {name!r} is neither a file or folder that is here nor a part of the suite; give a path, "
                f"{SUITE}, {SUITE}:SPLIT or {SUITE}:SPLIT/KIND,KIND"
            )
    if not tasks:
        raise ValueError(f"no task was named; give {SUITE}, a part of it, or the path of your records")
    seen: set[str] = set()
    for task in tasks:
        if task.name in seen:
            raise ValueError(f"the task {task.name!r} is named twice; name it once")
        seen.add(task.name)
    return tasks


def _suite_tasks(name: str, limit: int | None, metric: str | None) -> list[Task]:
    """The splits that a name means."""
    # They draw pictures, of which a user's own records need nothing.
    from . import suite
    from .splits import SUITE_VERSION

    if metric in NEEDS_CHOICES:
        raise ValueError(f"metric={metric!r} needs choices, and the suite's questions have none; use another metric")
    if name == SUITE:
        return [task for split in SUITE_SPLITS for task in _suite_tasks(f"{SUITE}:{split}", limit, metric)]
    split, slash, listed = name.removeprefix(f"{SUITE}:").partition("/")
    if split not in suite.KINDS_OF_SPLIT:
        raise ValueError(
            f"the suite has no split {split!r}; choose one of {', '.join(suite.KINDS_OF_SPLIT)}, such as {SUITE}:test"
        )
    kinds = tuple(dict.fromkeys(kind.strip() for kind in listed.split(","))) if slash else suite.KINDS_OF_SPLIT[split]
    for kind in kinds:
        if kind not in suite.KINDS_OF_SPLIT[split]:
            raise ValueError(
                f"the split {split!r} of the suite asks no questions of the kind {kind!r}; choose among "
                f"{', '.join(suite.KINDS_OF_SPLIT[split])}"
            )
    found = suite.evaluation_set(split, limit or QUESTIONS_PER_KIND * len(kinds), kinds)
    chosen = metric or "exact_match"
    questions = [
        Question(item.id, item.kind, _in_parts(item.messages), (item.answer,), chosen, (), item.id, item.mark)
        for item in found
    ]
    return [Task(name, questions, SUITE_VERSION)]


def _in_parts(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Messages whose contents are lists."""

    def parts(content: Any) -> Any:
        return [{"type": "text", "text": content}] if isinstance(content, str) else content

    return [{**message, "content": parts(message["content"])} for message in messages]


class FileQuestions(Sequence[Question]):
    """A user's records as questions, each read and checked when it is asked for.

    Args:
        path: a file or folder.
        options: how it is read.
        limit: records at most.
        metric: replaces every record's own.

    Raises:
        DataError: if it cannot be read or holds no records.
    """

    def __init__(self, path: Path, options: ReadOptions, limit: int | None = None, metric: str | None = None) -> None:
        self._folder = options.media_folder(path)
        self._raws = load_records(path)
        self._length = min(len(self._raws), limit or len(self._raws))
        self._question, self._metric = options.question or DEFAULT_QUESTION, metric

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        return read_question(self._raws[range(len(self))[index]], self._folder, self._question, self._metric)


def read_question(
    raw: Raw, folder: MediaFolder, question: str = DEFAULT_QUESTION, metric: str | None = None
) -> Question:
    """Turn a record into a question.

    Args:
        raw: the record.
        folder: where its pictures and videos may lie.
        question: asked where it has only an answer.
        metric: replaces its own.

    Returns:
        The question.

    Raises:
        RecordError: with file and line, what is wrong and how to put it right.
    """
    record = raw.value
    try:
        fields = record if isinstance(record, Mapping) else {}  # read_record says what is wrong with others
        answers, choices = _texts(fields, "answers"), _texts(fields, "choices")
        chosen = metric or _text(fields, "metric") or ("choice" if choices else "exact_match")
        kind = _text(fields, "kind")
        example = read_record(with_answer(record, answers), raw.source, folder, question)
        prompt, answer = _split(example.messages)
        accepted = tuple(dict.fromkeys(text.strip() for text in (answer, *answers)))
        mark = _text(fields, "mark")
        found = Question(example.id, kind or example.kind, prompt, accepted, chosen, choices, raw.source, mark)
        return _with_choices(found)
    except RecordError as error:
        raise RecordError(error.reason, raw.source) from error.__cause__


def _texts(record: Mapping[str, Any], key: str) -> tuple[str, ...]:
    """A list of texts; in a table it is written as JSON."""
    value = record.get(key)
    if value is None or value == "":
        return ()
    if isinstance(value, str):
        with suppress(ValueError):  # what is no JSON is shown as it stands
            value = loads(value)
    texts = value if isinstance(value, list | tuple) else None
    if not texts or not all(isinstance(text, str) and text.strip() for text in texts):
        raise RecordError(f'{key!r} is {shown(value)}, not a list of texts; write ["one", "two"]')
    return tuple(text.strip() for text in texts)


def _text(record: Mapping[str, Any], key: str) -> str | None:
    value = record.get(key)
    if value is None or value == "":
        return None
    if not isinstance(value, str):
        raise RecordError(f"{key!r} is {shown(value)}, not a text")
    if key == "metric" and value not in METRICS:
        raise RecordError(f"the metric {shown(value)} is not known; choose one of {', '.join(METRICS)}")
    return value


def with_answer(record: Mapping[str, Any], answers: Sequence[str]) -> Mapping[str, Any]:
    """A record whose answer stands where `read_record` looks for it, if it has none but those of its list.

    Args:
        record: as it was parsed; it is not changed.
        answers: right ones.

    Returns:
        The record itself if it has an answer of its own, or there are none.
    """
    if not answers:
        return record
    for key in ("messages", "conversations"):
        turns = record.get(key)
        if isinstance(turns, list | tuple) and turns and isinstance(turns[-1], Mapping):
            role = turns[-1].get("role") or turns[-1].get("from")
            if isinstance(role, str) and ROLES.get(role) == "assistant":
                return record
            return {**record, key: [*turns, {"role": "assistant", "content": answers[0]}]}
    column = find_columns(record).get("answer")
    return record if column is not None and record[column] else {**record, column or "answer": answers[0]}


def _split(messages: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], str]:
    """The prompt and the expected answer."""
    *prompt, last = messages
    if last["role"] != "assistant":
        raise RecordError(
            "the last message is the user's, and nothing answers it; add the expected answer as an assistant message, "
            "or give a list of 'answers'"
        )
    if not prompt or prompt[-1]["role"] != "user":
        raise RecordError("the answer answers no message of the user; put the question before it")
    if media := [part["type"] for part in last["content"] if part["type"] != "text"]:
        raise RecordError(f"the expected answer holds a part of the type {media[0]}; an answer is text")
    return prompt, "".join(part["text"] for part in last["content"])


def _with_choices(question: Question) -> Question:
    """A question whose accepted answers are texts of its choices; choices that go by letter are listed under it."""
    if question.metric not in NEEDS_CHOICES:
        return question
    choices = question.choices
    if not 2 <= len(choices) <= len(LETTERS) or len(set(choices)) < len(choices):
        raise RecordError(
            f"the metric {question.metric!r} needs 'choices', 2 to {len(LETTERS)} different texts; the record has "
            f"{shown(list(choices))}"
        )
    letters = dict(zip(LETTERS, choices, strict=False))
    for answer in question.accepted:
        if answer not in choices and answer not in letters:
            raise RecordError(
                f"the answer {shown(answer)} is none of the choices {shown(list(choices))}, nor the letter of one; "
                "correct it or add it to them"
            )
    accepted = tuple(dict.fromkeys(text if text in choices else letters[text] for text in question.accepted))
    question = replace(question, accepted=accepted)
    if question.metric == "choice":
        return question
    lines = [*(f"{letter}. {text}" for letter, text in letters.items()), LETTER_REQUEST]
    return replace(question, messages=append_text(question.messages, "\n" + "\n".join(lines)))


def append_text(messages: Sequence[dict[str, Any]], text: str) -> list[dict[str, Any]]:
    """A chat with more words at its end.

    Args:
        messages: with contents that are lists of parts.
        text: what is added to the last text of the last message, or stands as one of its own.

    Returns:
        A new list; what was given is as it was.
    """
    *before, last = messages
    content = list(last["content"])
    if content and content[-1]["type"] == "text":
        content[-1] = {"type": "text", "text": content[-1]["text"].rstrip() + text}
    else:
        content.append({"type": "text", "text": text.strip()})
    return [*before, {**last, "content": content}]
