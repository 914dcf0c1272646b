"""Answers to millions of records: in the order of the file, on disk window by window, shared out over processes.

A window is so many records in a row. Inside it, prompts of similar length are answered together; a finished one is a
file of its own beside the output, which appears when all are there. Repeating a run goes on with the windows that are
missing.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from . import asking
from .batch_records import read_prompt
from .eval_asking import Asking, resolve_generation, seed_of
from .eval_run import fingerprint
from .eval_tasks import ReadOptions
from .files import held, write_file, write_text
from .media import check_media
from .predicting import answer_in_batches
from .processes import Processes
from .prompt_view import PromptViewer
from .record_files import FOLDER_FILES, PICTURE_SUFFIXES, Raw, RecordError, load_records
from .records import DEFAULT_QUESTION, Example
from .run_records import differences, read_record
from .sources import check_source

Progress = Callable[[int, int], None]
SETTINGS = "settings.json"
BATCHES_OF_A_WINDOW = 16


@dataclass(frozen=True)
class BatchSettings:
    """What is answered, by what and where to.

    Attributes:
        source: file or folder of records.
        output: JSON lines: every record with the answer in it.
        model: folder or Hub id; by default the bundled checkpoint, or what the adapter was trained on.
        adapter: folder or Hub id of a LoRA adapter.
        how: the model is asked.
        read: how records are read.
        column: where the answer stands.
        skip_bad: give a record that cannot be used an "error" in the place of an answer instead of stopping.
        device: "auto", or any torch device.
        trust_remote_code: run code that the checkpoint brings.
        quantization: how the language model is held; see `quantization.QUANTIZATIONS`.
    """

    source: Path
    output: Path
    model: str | None = None
    adapter: str | None = None
    how: Asking = field(default_factory=Asking)
    read: ReadOptions = field(default_factory=ReadOptions)
    column: str = "prediction"
    skip_bad: bool = False
    device: str = "auto"
    trust_remote_code: bool = False
    quantization: str | None = None

    @property
    def parts(self) -> Path:
        """Folder of the windows that are done."""
        return self.output.with_name(f"{self.output.name}.parts")

    @property
    def window(self) -> int:
        """Records of a window."""
        return BATCHES_OF_A_WINDOW * self.how.batch_size


@dataclass(frozen=True)
class BatchOutcome:
    """How a run ended.

    Attributes:
        records: how many there are.
        bad: how many of them have an error instead of an answer.
        earlier: how many were answered by runs before this one.
    """

    records: int
    bad: int
    earlier: int


def run_batch(settings: BatchSettings, on_progress: Progress | None = None) -> BatchOutcome | None:
    """Answer all records, or go on with it.

    Args:
        settings: records, model, output.
        on_progress: is told how many records have an answer and how many there are.

    Returns:
        The outcome; None in all processes but the first.

    Raises:
        DataError: if the records cannot be read.
        FileExistsError: if the output is there already.
        RecordError: at a record that cannot be used, unless they are skipped.
        ValueError: if a setting breaks a rule, or another run began here.
    """
    try:
        return _run(settings, on_progress)
    except FileExistsError:
        _tidy(settings)
        raise


def _run(settings: BatchSettings, on_progress: Progress | None) -> BatchOutcome | None:
    """The same, which may leave parts beside an output that is there."""
    _check_output(settings)
    for source in (settings.model, settings.adapter):
        check_source(source)
    processes = Processes()
    records = load_records(settings.source)
    device = processes.device(settings.device)
    assistant = asking.load(
        settings.model, device, settings.trust_remote_code, settings.adapter, settings.quantization
    )
    with processes.together(), ExitStack() as stack:
        if processes.rank == 0:
            stack.enter_context(held(settings.parts))
            _check_output(settings)  # again: another run may have ended here meanwhile
            _check_parts(settings.parts, describe(settings, assistant, len(records)))
        processes.wait()
        windows = range(0, len(records), settings.window)
        missing = [start for start in windows if not part_of(settings, start).is_file()]
        earlier = len(records) - sum(min(settings.window, len(records) - start) for start in missing)
        processes.wait()  # all have looked before one writes
        answerer = _Answerer(settings, assistant)
        done = earlier
        if on_progress is not None:
            on_progress(done, len(records))
        for start in missing[processes.rank :: processes.count]:
            window = records[start : start + settings.window]
            write_text(part_of(settings, start), "".join(answerer.lines(window)))
            done = min(done + len(window) * processes.count, len(records))
            if on_progress is not None:
                on_progress(done, len(records))
        processes.wait()
        if processes.rank > 0:
            return None
        bad = _join(settings, windows, len(records))
        _remove(settings.parts)  # while it is held, so that nobody begins to write there
    return BatchOutcome(len(records), bad, earlier)


def part_of(settings: BatchSettings, start: int) -> Path:
    """Where the answers of a window stand.

    Args:
        settings: of the run.
        start: number of its first record.

    Returns:
        The file.
    """
    return settings.parts / f"{start:012}.jsonl"


def describe(settings: BatchSettings, assistant: asking.Assistant, records: int) -> dict[str, Any]:
    """What tells a run from others: everything that could change a line of the output.

    Args:
        settings: of the run.
        assistant: that answers.
        records: how many there are.

    Returns:
        JSON.
    """
    how = settings.how
    record = {
        "records": {"count": records, "digest": _digest(settings.source)},
        "fingerprint": fingerprint(assistant.model, assistant.processor),
        "preset": how.preset,
        "generation": resolve_generation(assistant.model, how),
        "seed": how.seed,
        "window": settings.window,
        "column": settings.column,
        "skip_bad": settings.skip_bad,
        "question": settings.read.question,
    }
    found: dict[str, Any] = json.loads(json.dumps(record))
    return found


def _digest(source: Path) -> str:
    """Of a file's content; of a folder's the words, and the names of the pictures, which may be many and large.

    Whatever else stands in a folder makes no record: the output of the run may lie there as well.
    """
    if source.is_file():
        return _content_digest(source)
    found = hashlib.sha256()
    for path in sorted(source.rglob("*")):
        has_words = path.name in FOLDER_FILES or path.suffix == ".txt"
        if has_words or path.suffix.lower() in PICTURE_SUFFIXES:
            found.update(os.fsencode(path.relative_to(source).as_posix()) + b"\n")
        if has_words and path.is_file():
            found.update(_content_digest(path).encode())
    return found.hexdigest()


def _content_digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _check_output(settings: BatchSettings) -> None:
    """Refuse an output that is there."""
    if settings.output.exists():
        raise FileExistsError(f"{settings.output} is there already; choose another output or remove it")


def _remove(parts: Path) -> None:
    """Remove parts, and first what they would be taken up by."""
    (parts / SETTINGS).unlink(missing_ok=True)
    shutil.rmtree(parts)


def _tidy(settings: BatchSettings) -> None:
    """Remove parts that are of no use beside an output: a run was killed while it removed them, or came too late."""
    if not settings.parts.is_dir():
        return
    with suppress(ValueError, OSError), held(settings.parts):  # whoever holds them removes them
        if not (settings.parts / SETTINGS).is_file() or _are_joined(settings):
            _remove(settings.parts)


def _are_joined(settings: BatchSettings) -> bool:
    """Whether the output is what stands in the parts."""
    with settings.output.open("rb") as output:
        for part in sorted(settings.parts.glob("*.jsonl")):
            content = part.read_bytes()
            if output.read(len(content)) != content:
                return False
        return not output.read(1)


def _check_parts(folder: Path, record: dict[str, Any]) -> None:
    """Begin a run, or make sure that it is the one that began here."""
    path = folder / SETTINGS
    if not path.is_file():
        for part in folder.glob("*.jsonl"):  # of a run that was killed while it removed its parts
            part.unlink()
        write_text(path, json.dumps(record, indent=1) + "\n")
        return
    if found := list(differences(read_record(path), record)):
        raise ValueError(
            f"{folder} holds another run: {'; '.join(found[:5])}. Repeat the command it was begun with to go on, or "
            "choose another output or remove the folder"
        )


def _join(settings: BatchSettings, windows: Sequence[int], records: int) -> int:
    """Put the windows together, and say how many records have an error."""
    for start in windows:
        if not part_of(settings, start).is_file():
            raise ValueError(
                f"{settings.parts} holds no {part_of(settings, start).name}; all processes must write to the same disk"
            )
    bad = 0

    def write(scratch: Path) -> None:
        nonlocal bad
        with scratch.open("wb") as output:
            for start in windows:
                content, found = _read_part(part_of(settings, start), min(settings.window, records - start))
                bad += sum(settings.column not in record for record in found)
                output.write(content)

    write_file(settings.output, write)
    return bad


def _read_part(part: Path, count: int) -> tuple[bytes, list[dict[str, Any]]]:
    """The answers of a window as they stand there, and as records; a damaged file is refused."""
    content = part.read_bytes()
    try:
        found = [json.loads(line) for line in content.splitlines()]
        if len(found) != count:
            raise ValueError(f"{len(found)} of {count} records")
    except ValueError as error:
        raise ValueError(
            f"{part} is damaged ({error}); remove it and repeat the command, which answers its records again"
        ) from error
    return content, found


def _line(record: dict[str, Any]) -> str:
    """A record as a line of the output; half a character, which no file in UTF-8 can hold, stays the escape it was."""
    line = json.dumps(record, ensure_ascii=False, default=str)
    is_whole = line.encode(errors="replace").decode() == line
    return (line if is_whole else json.dumps(record, default=str)) + "\n"


class _Answerer:
    """Answers windows.

    Args:
        settings: of the run.
        assistant: that answers.
    """

    def __init__(self, settings: BatchSettings, assistant: asking.Assistant) -> None:
        self.settings, self.assistant = settings, assistant
        self.folder = settings.read.media_folder(settings.source)
        self.viewer = PromptViewer(assistant.processor)

    def lines(self, window: Sequence[Raw]) -> Iterator[str]:
        """Lines of the output, in the order of the records.

        Args:
            window: the records.

        Yields:
            JSON.
        """
        prompts: dict[int, Example] = {}
        lengths: dict[int, int] = {}
        told: dict[int, dict[str, Any]] = {}
        for number, raw in enumerate(window):
            try:
                prompts[number], lengths[number] = self._prompt(raw)
            except RecordError as error:
                if not self.settings.skip_bad:
                    raise
                told[number] = {"error": str(error)}
        seeds = [seed_of(f"{self.settings.how.seed}/{window[number].source}") for number in prompts]
        chats = [prompt.messages for prompt in prompts.values()]
        replies = answer_in_batches(self.assistant, chats, list(lengths.values()), self.settings.how, seeds)
        told |= {number: {self.settings.column: reply.text} for number, reply in zip(prompts, replies, strict=True)}
        for number, raw in enumerate(window):
            record = raw.value if isinstance(raw.value, dict) else {"source": raw.source}
            # Nothing but an answer stands where answers stand; what was there before is told in the error.
            kept = {name: value for name, value in record.items() if name != self.settings.column}
            yield _line({**kept, **told[number]})

    def _prompt(self, raw: Raw) -> tuple[Example, int]:
        question = self.settings.read.question or DEFAULT_QUESTION
        example = read_prompt(raw, self.folder, self.settings.column, question)
        try:
            sizes = check_media(example.messages)
        except RecordError as error:
            raise RecordError(error.reason, raw.source) from error.__cause__
        return example, self.viewer.view(example.messages, sizes).length
