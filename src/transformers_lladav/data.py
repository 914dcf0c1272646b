"""Training data: people's own records of pictures and conversations, as examples.

`read_examples` goes through them once; `Examples` gives access to each by its number. Both take the same sources.
"""

from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import Any, Literal

from .media import MAX_IMAGE_PIXELS, MediaFolder, check_media
from .record_files import DataError, Progress, Raw, RecordError, iterate_records, load_records
from .records import DEFAULT_QUESTION, Example, read_record

Check = Literal["paths", "headers", "pixels"]

__all__ = ["DataError", "Example", "Examples", "RecordError", "read_examples"]


def read_examples(
    source: Any,
    *,
    image_folder: str | Path | None = None,
    allow_outside: bool = False,
    allow_urls: bool = False,
    question: str = DEFAULT_QUESTION,
    check: Check = "headers",
    max_image_pixels: int = MAX_IMAGE_PIXELS,
    name: str = "record",
    on_bad: Callable[[RecordError], None] | None = None,
    on_progress: Progress | None = None,
) -> Iterator[Example]:
    r"""Read training data one example after the other.

    A record is told by its keys, so that one file may mix the formats:

    - LLaVA: `{"id", "image": path or list, "video", "conversations": [{"from": "human", "value": "<image>\nWhat?"},
      {"from": "gpt", "value": "A cat."}]}`. As in official training, a conversation that begins with the assistant
      loses that message.
    - chat: `{"messages": [{"role", "content": text or list of parts}], "images": [...], "videos": [...]}`. Parts of
      type image and video hold their picture (`{"type": "image", "image": path}`), or take the next of the list.
    - table: `{"image", "question", "answer"}` or other common names, also as CSV or TSV. An answer alone, as in
      captions, is one to `question`.

    A folder is read from its `metadata.jsonl`, `.csv`, `.tsv` or `.json`; without one, every picture in it goes with
    the text of the same name beside it: `cat.jpg`, `cat.txt`.

    `<image>` and `<video>` in a text that is a string are placeholders: there a picture stands, in order. (Official
    training moves a single `<image>` to the front of its message; we leave it where it is.) The line feed after one is
    dropped, because the chat template writes what stands between a picture and text. Pictures without any placeholder
    stand before the first user message, as LLaVA's data loaders do it. If a record has videos and no pictures,
    `<image>` stands for a video. A video is a list of frames, a folder of frames or a video file.

    Args:
        source: a file or folder, or records: any iterable of dictionaries, such as a `Dataset` or `IterableDataset` of
            the datasets library, with PIL images in the place of paths if you like.
        image_folder: where the pictures' paths start, and which they may not leave; by default the folder of the data
            file, or the working folder for records in memory.
        allow_outside: let paths leave that folder.
        allow_urls: let pictures be http(s) URLs, which are fetched when they are opened.
        question: asked where a record has an answer and no question.
        check: whether each picture must just be there ("paths"), have a header that can be read and a size within the
            limit ("headers"), or be decoded whole ("pixels").
        max_image_pixels: larger pictures are refused.
        name: what messages call records in memory, before their number.
        on_bad: takes the error of every record that cannot be used, which is left out then; without it the first one
            is raised.
        on_progress: is told how much of a file was read and how much there is.

    Yields:
        The examples.

    Raises:
        DataError: if the source cannot be read.
        RecordError: at the first bad record, naming file and line, if there is no `on_bad`.
        TypeError: if the source is neither a path nor records.
        ValueError: for an unknown `check`.
        ImportError: if a video file is to be checked and PyAV is not installed.
    """
    folder = _media_folder(source, image_folder, allow_outside, allow_urls)
    for raw in _iterate(source, name, on_progress):
        try:
            yield _example(raw, folder, question, check, max_image_pixels)
        except RecordError as error:
            if on_bad is None:
                raise
            on_bad(error)


class Examples(Sequence[Example]):
    """Training data with access by number, for shuffled training; can be pickled for the workers of a DataLoader.

    Of JSON lines only the offsets of lines are held in memory. Records are read once at the start, so that a bad one
    is found before training; after that they are read, and their paths checked, when they are asked for.

    Args:
        source: as for `read_examples`; records in memory must be a sequence.
        image_folder: as for `read_examples`.
        allow_outside: as for `read_examples`.
        allow_urls: as for `read_examples`.
        question: as for `read_examples`.
        check: as for `read_examples`, or None to read nothing at the start.
        max_image_pixels: as for `read_examples`.
        name: as for `read_examples`.
        skip_bad: leave bad records out.
        on_progress: is told how far reading at the start is.

    Attributes:
        skipped: the errors of the records that were left out.

    Raises:
        DataError: if the source cannot be read, or no record is left.
        RecordError: at the first bad record, unless `skip_bad`.
        TypeError: if the source has no length, or is neither a path nor records.
        ValueError: for an unknown `check`, or `skip_bad` without one.
        ImportError: if a video file is to be checked and PyAV is not installed.
    """

    def __init__(
        self,
        source: Any,
        *,
        image_folder: str | Path | None = None,
        allow_outside: bool = False,
        allow_urls: bool = False,
        question: str = DEFAULT_QUESTION,
        check: Check | None = "headers",
        max_image_pixels: int = MAX_IMAGE_PIXELS,
        name: str = "record",
        skip_bad: bool = False,
        on_progress: Progress | None = None,
    ) -> None:
        if skip_bad and check is None:
            raise ValueError("skip_bad=True with check=None: bad records are found by reading; give a check")
        self._folder = _media_folder(source, image_folder, allow_outside, allow_urls)
        self._question = question
        self._raws = _load(source, name, on_progress)
        self._kept: Sequence[int] = range(len(self._raws))
        self.skipped: list[RecordError] = []
        if check is not None:
            self._kept = self._read_all(check, max_image_pixels, skip_bad, on_progress or (lambda done, total: None))

    def _read_all(self, check: Check, max_image_pixels: int, skip_bad: bool, report: Progress) -> Sequence[int]:
        kept = array("Q")
        for index, raw in enumerate(self._raws):
            try:
                _example(raw, self._folder, self._question, check, max_image_pixels)
                kept.append(index)
            except RecordError as error:
                if not skip_bad:
                    raise
                self.skipped.append(error)
            report(index + 1, len(self._raws))
        if not kept:
            raise DataError(f"no record is left: all {len(self._raws)} are bad; the first: {first_of(self.skipped)}")
        return kept if self.skipped else self._kept

    def __len__(self) -> int:
        return len(self._kept)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        raw = self._raws[self._kept[index]]
        return _example(raw, self._folder, self._question, "paths", MAX_IMAGE_PIXELS)


class _InMemory(Sequence[Raw]):
    """Records that somebody else holds."""

    def __init__(self, records: Sequence[Any], name: str) -> None:
        self._records, self._name = records, name

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: Any) -> Any:
        return Raw(f"{self._name} {index}", self._records[index])


def first_of(errors: Sequence[Exception], most: int = 3) -> str:
    """The first errors of many for a message, and how many more there are."""
    more = f" (and {len(errors) - most} more)" if len(errors) > most else ""
    return "; ".join(map(str, errors[:most])) + more


def _example(raw: Raw, folder: MediaFolder, question: str, check: Check, max_image_pixels: int) -> Example:
    if check not in ("paths", "headers", "pixels"):
        raise ValueError(f"check={check!r} is not known; use 'paths', 'headers' or 'pixels'")
    example = read_record(raw.value, raw.source, folder, question)
    if check != "paths":
        try:
            check_media(example.messages, max_image_pixels, decode=check == "pixels")
        except RecordError as error:
            raise RecordError.of(error, raw.source) from error.__cause__
    return example


def _media_folder(source: Any, image_folder: str | Path | None, allow_outside: bool, allow_urls: bool) -> MediaFolder:
    if image_folder is not None:
        root = Path(image_folder)
        if not root.is_dir():
            raise DataError(f"image_folder={str(root)!r} is not a folder")
    elif isinstance(source, str | Path):
        root = Path(source) if Path(source).is_dir() else Path(source).parent
    else:
        root = Path()
    return MediaFolder(root.absolute(), allow_outside, allow_urls)


def _iterate(source: Any, name: str, on_progress: Progress | None) -> Iterator[Raw]:
    if isinstance(source, str | Path):
        return iterate_records(Path(source), on_progress)
    return (Raw(f"{name} {number}", record) for number, record in zip(count(), _records(source), strict=False))


def _load(source: Any, name: str, on_progress: Progress | None) -> Sequence[Raw]:
    if isinstance(source, str | Path):
        return load_records(Path(source), on_progress)
    records = _records(source)
    if not hasattr(records, "__len__") or not hasattr(records, "__getitem__"):
        raise TypeError(
            f"a {type(source).__name__} has no length and no access by number; use read_examples for a stream, or "
            "make it a list"
        )
    return _InMemory(records, name)  # type: ignore[arg-type]


def _records(source: Any) -> Iterable[Any]:
    if isinstance(source, Mapping):
        raise TypeError(
            f"a dictionary with the keys {list(source)[:5]} is no list of records; of a dataset with splits give one, "
            "such as dataset['train']; a single record goes into a list"
        )
    if isinstance(source, bytes) or not isinstance(source, Iterable):
        raise TypeError(f"training data are a path or records, not a {type(source).__name__}")
    return source
