"""Records as they stand in files: LLaVA JSON, JSON lines, tables (CSV, TSV) and folders of pictures with texts.

What a record means is not decided here, see `records`. Nothing in a file is executed.
"""

import csv
import json
import os
import re
import reprlib
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from .strict_json import loads, once

PICTURE_SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"})
TABLE_SUFFIXES = (".csv", ".tsv")
LINE_SUFFIXES = (".jsonl", ".ndjson")
FOLDER_FILES = ("metadata.jsonl", "metadata.csv", "metadata.tsv", "metadata.json")

# Names of a table's columns, the likeliest first.
COLUMNS = {
    "picture": ("image", "picture", "photo", "img", "file_name", "filename", "file", "image_path", "path"),
    "question": ("question", "prompt", "instruction", "query", "input"),
    "answer": ("answer", "caption", "response", "output", "target", "text", "label"),
}

MAX_LINE = 2**28  # bytes of a line, which is held in memory as a whole; pictures inside of records are far smaller
MAX_HEADER = 2**20  # characters of a table's first line

Progress = Callable[[int, int], None]

# What a terminal would act on, or what would turn the direction of the text around it.
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")

_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 80
_SHORT.maxlevel = 2


class DataError(ValueError):
    """Training data that cannot be read at all."""


class RecordError(DataError):
    """One record that cannot be used.

    Args:
        reason: what is wrong, what the rule is and how to put it right.
        source: file and line; unknown where the record's content alone is looked at.

    Attributes:
        reason: as given.
        source: as given.
    """

    def __init__(self, reason: str, source: str | None = None) -> None:
        super().__init__(reason, source)
        self.reason, self.source = reason, source

    def __str__(self) -> str:
        return f"{self.source}: {self.reason}" if self.source else self.reason

    @classmethod
    def of(cls, error: ValueError, source: str) -> "RecordError":
        """An error about the content of a record, with where the record stands."""
        return cls(getattr(error, "reason", str(error)), source)


class Raw(NamedTuple):
    """A record before anybody looked at what it means.

    Attributes:
        source: file and line, for messages.
        value: what was parsed, or the error that parsing ended with.
    """

    source: str
    value: Any


def shown(value: Any) -> str:
    """A value as messages show it: shortened, and with control characters escaped."""
    return _SHORT.repr(value)


def named(value: Any) -> str:
    """A value of the wrong kind as messages name it; a missing one of a table is NaN."""
    return "NaN (a missing value)" if isinstance(value, float) and value != value else shown(value)


def is_picture_name(name: str | os.PathLike[str]) -> bool:
    """Whether a file is called like a picture."""
    return Path(name).suffix.lower() in PICTURE_SUFFIXES


def printable(text: str) -> str:
    """Text with control characters spelt out, so that data cannot steer a terminal."""
    return _CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def find_columns(names: Iterable[Any]) -> dict[str, str]:
    """Tell which columns hold the picture, the question and the answer.

    Args:
        names: the columns, in any case.

    Returns:
        The column of each of "picture", "question" and "answer" that there is.
    """
    known = {name.strip().lower(): name for name in names if isinstance(name, str)}
    found = {what: next((known[n] for n in wanted if n in known), None) for what, wanted in COLUMNS.items()}
    return {what: name for what, name in found.items() if name is not None}


def columns_looked_for(*kinds: str) -> str:
    """The names of columns that would have done, for messages."""
    return "; ".join(f"{kind}: {', '.join(COLUMNS[kind])}" for kind in kinds)


def iterate_records(path: Path, on_progress: Progress | None = None) -> Iterator[Raw]:
    """Read records one after the other.

    Args:
        path: a file of JSON, JSON lines, CSV or TSV, or a folder.
        on_progress: is told how much was read and how much there is.

    Yields:
        The records; one that cannot be parsed has its `RecordError` as value, where reading can go on after it.

    Raises:
        DataError: if the file cannot be read, is of no known kind, or holds no records.
    """
    report = on_progress or (lambda done, total: None)
    count = 0
    try:
        for raw in _reader(path)(path, report):
            count += 1
            yield raw
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from error
    if not count:
        raise DataError(f"{path} holds no records")


def load_records(path: Path, on_progress: Progress | None = None) -> Sequence[Raw]:
    """Give random access to records.

    Args:
        path: as for `iterate_records`.
        on_progress: is told how much was read and how much there is.

    Returns:
        The records. Of JSON lines only the offsets are held in memory, otherwise everything but the pictures.

    Raises:
        DataError: as `iterate_records` does.
    """
    try:
        file = _metadata(path)
        lines = _reader(file) is _json_lines
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from error
    return JsonLines(file, on_progress) if lines else list(iterate_records(path, on_progress))


class JsonLines(Sequence[Raw]):
    """The lines of a file by their number among those that are not blank; can be pickled and shared by processes.

    The file is opened anew for every access, so that workers do not share a position in it.

    Args:
        path: the file.
        on_progress: is told how many bytes were read and how many there are.

    Raises:
        DataError: if the file cannot be read or holds no records.
    """

    def __init__(self, path: Path, on_progress: Progress | None = None) -> None:
        self.path = path
        self._offsets, self._numbers = array("Q"), array("Q")
        try:
            for number, offset, _ in _lines(path, on_progress or (lambda done, total: None)):
                self._offsets.append(offset)
                self._numbers.append(number)
        except OSError as error:
            raise DataError(f"{path} cannot be read: {error.strerror or error}") from error
        if not self._offsets:
            raise DataError(f"{path} holds no records")

    def __len__(self) -> int:
        return len(self._offsets)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        offset, number = self._offsets[index], self._numbers[index]
        try:
            with self.path.open("rb") as file:
                file.seek(offset)
                return _parse_line(file.readline(MAX_LINE + 1), f"{self.path.name}:{number}")
        except OSError as error:
            raise DataError(f"{self.path} cannot be read: {error.strerror or error}") from error


def _reader(path: Path) -> Callable[[Path, Progress], Iterator[Raw]]:
    """How a file is read: told by its ending, or by its first line."""
    if path.is_dir():
        return _folder
    suffix = path.suffix.lower()
    if suffix in TABLE_SUFFIXES:
        return _table
    if suffix in LINE_SUFFIXES:
        return _json_lines
    if suffix == ".parquet":
        raise DataError(
            f"{path} is a Parquet file; pass datasets.load_dataset('parquet', data_files=...)['train'] in its place"
        )
    with path.open("rb") as file:
        lines = iter(lambda: file.readline(MAX_LINE), b"")
        first = next((line for line in lines if line.strip(b"\xef\xbb\xbf \t\r\n")), b"")
    start = first.strip(b"\xef\xbb\xbf \t\r\n")[:1]
    if start == b"[":
        return _json
    if start == b"{":
        return _json if isinstance(_parse_line(first, path.name).value, RecordError) else _json_lines
    if not start:
        raise DataError(f"{path} holds no records")
    raise DataError(
        f"{path} is of no known kind: it begins with {shown(first[:20])}; give JSON, JSON lines, CSV or TSV"
    )


def _lines(path: Path, report: Progress) -> Iterator[tuple[int, int, bytes]]:
    """Number (from 1), offset and content of every line that is not blank."""
    offset = 0
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        for number, line in enumerate(iter(lambda: file.readline(MAX_LINE + 1), b""), start=1):
            if line.strip(b"\xef\xbb\xbf \t\r\n"):
                yield number, offset, line
            offset += len(line)
            while len(line) > MAX_LINE and not line.endswith(b"\n"):  # the rest of what is refused
                line = file.readline(MAX_LINE + 1)
                offset += len(line)
            report(offset, size)


def _json_lines(path: Path, report: Progress) -> Iterator[Raw]:
    for number, _, line in _lines(path, report):
        yield _parse_line(line, f"{path.name}:{number}")


def _parse_line(line: bytes, source: str) -> Raw:
    if len(line) > MAX_LINE:
        return Raw(source, RecordError(f"the line is longer than {MAX_LINE} bytes; split it, or name files", source))
    try:
        return Raw(source, loads(line.decode("utf-8-sig").rstrip()))
    except UnicodeDecodeError as error:
        return Raw(source, RecordError(f"the line is not UTF-8 (byte {error.start + 1})", source))
    except json.JSONDecodeError as error:
        return Raw(source, RecordError(f"the line is not JSON: {error.msg} at column {error.colno}", source))
    except ValueError as error:  # a key twice, a number of thousands of digits, nesting of thousands of levels
        return Raw(source, RecordError(f"the line cannot be read as JSON: {error}", source))


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise DataError(f"{path.name}:{line}: the file is not UTF-8; save it as UTF-8") from error


def _json(path: Path, report: Progress) -> Iterator[Raw]:
    """The records of a list, with the lines they begin in; or a single record."""
    text = _text(path)
    decoder, position, line, counted = json.JSONDecoder(object_pairs_hook=once), _skip(text, 0), 1, 0
    single = text[position] == "{"
    position = position if single else _skip(text, position + 1)
    while single or text[position : position + 1] != "]":
        line, counted = line + text.count("\n", counted, position), position
        source = f"{path.name}:{line}"
        try:
            value, position = decoder.raw_decode(text, position)
        except json.JSONDecodeError as error:
            raise DataError(
                f"{path.name}:{error.lineno}: the file is not JSON: {error.msg} at column {error.colno}, in the "
                f"record that begins in line {line}"
            ) from error
        except (ValueError, RecursionError) as error:
            raise DataError(f"{source}: the record cannot be read as JSON: {error}") from error
        yield Raw(source, value)
        report(position, len(text))
        position = _skip(text, position)
        if not single:
            position = _after_record(text, position, path.name)
        elif position == len(text):
            return
        else:
            raise DataError(f"{source}: more follows after the record; put records in a list, or one on each line")
    if rest := text[_skip(text, position + 1) :]:
        raise DataError(f"{path.name}: after the list of records follows {shown(rest)}; remove it")


def _skip(text: str, position: int) -> int:
    """The first place from a position on that is no white space."""
    return _SPACE.match(text, position).end()  # type: ignore[union-attr]


_SPACE = re.compile(r"[ \t\r\n]*")


def _after_record(text: str, position: int, name: str) -> int:
    """Where the next record of a list begins, or the list ends."""
    if text[position : position + 1] == ",":
        following = _skip(text, position + 1)
        if text[following : following + 1] != "]":
            return following
        position = following
    elif text[position : position + 1] == "]":
        return position
    line = text.count("\n", 0, position) + 1
    found = shown(text[position : position + 20]) if position < len(text) else "the end of the file"
    raise DataError(f"{name}:{line}: the file is not JSON: after a record stands {found}, not a comma or a ]")


def _table(path: Path, report: Progress) -> Iterator[Raw]:
    """The rows of a table as records, with the lines they begin in."""
    size, line = path.stat().st_size, 1
    with path.open(encoding="utf-8-sig", newline="") as file:
        try:
            first = file.readline(MAX_HEADER)
            if len(first) == MAX_HEADER:
                raise DataError(f"{path.name}:1: the header is longer than {MAX_HEADER} characters; is this a table?")
            delimiter = "\t" if path.suffix.lower() == ".tsv" else max(",;\t", key=first.count)
            header = next(csv.reader([first], delimiter=delimiter), [])
            _check_header(header, path)
            rows, line = csv.reader(file, delimiter=delimiter), 2
            for row in rows:
                source, line = f"{path.name}:{line}", rows.line_num + 2
                if not any(cell.strip() for cell in row):
                    continue
                yield Raw(source, _row(row, header, source))
                report(os.lseek(file.fileno(), 0, os.SEEK_CUR), size)  # a block ahead of the row
        except UnicodeDecodeError as error:
            raise DataError(f"{path.name}: the file is not UTF-8; save it as 'CSV UTF-8'") from error
        except csv.Error as error:
            raise DataError(f"{path.name}:{line}: the row cannot be read: {error}") from error


def _check_header(header: list[str], path: Path) -> None:
    found = find_columns(header)
    if "answer" not in found or not found.keys() & {"picture", "question"}:
        missing = [kind for kind in COLUMNS if kind not in found]
        raise DataError(
            f"{path.name}:1: no column for the {' or the '.join(missing)} among {shown(header)}; "
            f"looked for {columns_looked_for(*missing)}"
        )
    if twice := [name for name in found.values() if header.count(name) > 1]:
        raise DataError(
            f"{path.name}:1: the column {shown(twice[0])} stands twice among {shown(header)}; rename one of them"
        )


def _row(row: list[str], header: list[str], source: str) -> Any:
    if len(row) != len(header):
        hint = "put texts that hold the separator in quotes" if len(row) > len(header) else "fill the row up"
        return RecordError(f"the row has {len(row)} cells, the header has {len(header)}; {hint}", source)
    return dict(zip(header, row, strict=True))


def _folder(path: Path, report: Progress) -> Iterator[Raw]:
    """Records of the metadata file of a folder, or its pictures with the texts of the same name beside them."""
    if (file := _metadata(path)) != path:
        yield from _reader(file)(file, report)
        return
    pictures = sorted(filter(is_picture_name, path.rglob("*")))
    if not pictures:
        raise DataError(f"{path} holds no pictures and none of {', '.join(FOLDER_FILES)}")
    for done, picture in enumerate(pictures, start=1):
        source = picture.relative_to(path).as_posix()
        yield Raw(source, _captioned(picture, source, path))
        report(done, len(pictures))


def _metadata(path: Path) -> Path:
    """The metadata file of a folder; the path itself if it is no folder, or one without such a file."""
    return next((file for name in FOLDER_FILES if (file := path / name).is_file()), path)


def _captioned(picture: Path, source: str, folder: Path) -> Any:
    text = picture.with_suffix(".txt")
    try:
        if not text.resolve().is_relative_to(folder.resolve()):
            return RecordError(f"{text.name} is a link out of the folder; put a copy in its place", source)
        return {"id": source, "image": source, "answer": text.read_text(encoding="utf-8-sig").strip()}
    except FileNotFoundError:
        return RecordError(f"the picture has no text; write it to {text.name} beside the picture", source)
    except (OSError, RuntimeError, UnicodeDecodeError) as error:
        return RecordError(f"{text.name} cannot be read as UTF-8 text: {error}", source)
