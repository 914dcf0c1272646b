"""The data of a training run: opened wherever they are, and a part of them held out.

How long samples are is measured by `lengths.check_lengths`; what is read while training goes on is a `streams.Stream`.
"""

import hashlib
import re
from collections.abc import Hashable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from .data import Examples
from .lengths import LengthCheck, check_lengths
from .media import MAX_IMAGE_PIXELS
from .noise import numbered_generator
from .record_files import LINE_SUFFIXES, TABLE_SUFFIXES, DataError, Progress
from .records import DEFAULT_QUESTION, Example
from .samples import Selection
from .streams import Stream

__all__ = ["LengthCheck", "Stream", "check_lengths", "hold_out", "open_data"]

DEFAULT_SPLIT = "train"
_HUB_ID = re.compile(r"(?P<name>[A-Za-z0-9_][\w.-]*/[A-Za-z0-9_][\w.-]*)(:(?P<split>[\w.%:\[\]+-]+))?", re.ASCII)
_FILE_SUFFIXES = {*LINE_SUFFIXES, *TABLE_SUFFIXES, ".json", ".parquet"}


def open_data(
    source: str | Path,
    *,
    stream: bool = False,
    skip_bad: bool = False,
    on_progress: Progress | None = None,
    image_folder: str | Path | None = None,
    allow_outside: bool = False,
    allow_urls: bool = False,
    question: str = DEFAULT_QUESTION,
    max_image_pixels: int = MAX_IMAGE_PIXELS,
    block: int = 1,
    shuffle_buffer: int = 0,
    seed: int = 0,
) -> Examples | Stream:
    """Open training data: a file or folder, or a data set of the Hub, of which no code is run.

    Args:
        source: a path, which wins if there is something, or `owner/name` or `owner/name:split` on the Hub; without a
            split, "train".
        stream: read while training goes on, instead of looking at every record now.
        skip_bad: leave bad records out.
        on_progress: is told how much was read and how much there is; of a stream nothing is read now but a record.
        image_folder: as for `data.read_examples`.
        allow_outside: as for `data.read_examples`.
        allow_urls: as for `data.read_examples`.
        question: as for `data.read_examples`.
        max_image_pixels: as for `data.read_examples`.
        block: of a stream; see `streams.Stream`.
        shuffle_buffer: of a stream; see `streams.Stream`.
        seed: of a stream; see `streams.Stream`.

    Returns:
        Examples with access by number, or a stream of samples, which never ends.

    Raises:
        DataError: if there is no such path or data set, it cannot be read, or no record can be used.
        RecordError: at the first bad record, unless `skip_bad`.
        ImportError: if the Hub is to be asked and the datasets library is missing.
        ValueError: if settings of a stream are given for something else.
    """
    if not stream and (block, shuffle_buffer) != (1, 0):
        raise ValueError(f"block={block} and shuffle_buffer={shuffle_buffer} are for streams; pass stream=True")
    options: dict[str, Any] = {
        "skip_bad": skip_bad,
        "image_folder": image_folder,
        "allow_outside": allow_outside,
        "allow_urls": allow_urls,
        "question": question,
        "max_image_pixels": max_image_pixels,
    }
    records: Any = Path(source)
    if not records.exists():
        name, split = _hub_name(str(source))
        records, options["name"] = _load_from_hub(name, split, stream), f"{name}:{split} record"
    if not stream:
        return Examples(records, on_progress=on_progress, **options)
    opened = Stream(records, block=block, shuffle_buffer=shuffle_buffer, seed=seed, **options)
    next(opened.examples())
    return opened


def _hub_name(source: str) -> tuple[str, str]:
    """Name and split of a data set, if a text can be one."""
    found = _HUB_ID.fullmatch(source)
    if found is None or Path(source).suffix.lower() in _FILE_SUFFIXES:
        raise DataError(
            f"there is no file or folder {source!r}; give a path that exists, or a data set of the Hub as owner/name "
            "or owner/name:split"
        )
    return found["name"], found["split"] or DEFAULT_SPLIT


def _load_from_hub(name: str, split: str, stream: bool) -> Any:
    """A data set of the Hub, as the datasets library has it."""
    missing = f"there is no file or folder {name!r}"
    try:
        import datasets  # type: ignore[import-not-found, import-untyped, unused-ignore]

        if int(datasets.__version__.split(".")[0]) < 4:
            raise ImportError(f"datasets {datasets.__version__} can run code that a data set brings")
    except ImportError as error:
        raise ImportError(
            f"{missing}, and a data set of the Hub needs the datasets library, 4.0 or later: "
            "pip install 'transformers_lladav[data]'"
        ) from error
    try:
        return datasets.load_dataset(name, split=split, streaming=stream)
    except FileNotFoundError as error:
        raise DataError(
            f"{missing}, and no data set {name!r} on the Hub that you can see; check the name, or log in with "
            "`hf auth login` if it is private"
        ) from error
    except ConnectionError as error:
        raise DataError(f"{missing}, and the Hub cannot be asked for a data set of that name: {error}") from error
    except Exception as error:  # what prepares a data set raises anything
        raise DataError(f"the data set {name!r} of the Hub cannot be opened with split {split!r}: {error}") from error


def hold_out(
    examples: Sequence[Example],
    share: float | None = None,
    count: int | None = None,
    seed: int = 0,
    on_progress: Progress | None = None,
) -> tuple[Selection, Selection]:
    """Split examples into those to train on and those held out, so that no held-out picture is trained on.

    Examples that show a picture or a frame in common stay together, pictures being told by their path, or by their
    pixels if they are in memory; of text alone, those of the same text. Such groups are drawn at random and held out
    while they fit, so that no more are held out than asked for, unless already the smallest group has more.

    Args:
        examples: all of them.
        share: how much of them is held out, more than 0 and less than 1.
        count: how many are held out, in place of a share.
        seed: of the draw, which depends on nothing else.
        on_progress: is told how many examples were looked at and how many there are.

    Returns:
        The examples to train on and the examples held out, both in their old order; they can be pickled.

    Raises:
        ValueError: if not one of `share` and `count` is given, or either side would be empty.
    """
    wanted = _held_out_count(len(examples), share, count)
    groups = _groups(examples, on_progress or (lambda done, total: None))
    if len(groups) < 2:
        raise ValueError(
            f"all {len(examples)} examples hang together by the pictures they show, so that none can be held out; "
            "give held-out data of their own"
        )
    drawn = torch.randperm(len(groups), generator=numbered_generator(seed, "held out")).tolist()
    held: list[int] = []
    for group in (groups[number] for number in drawn):
        if len(held) + len(group) <= wanted:
            held += group
    if not held:
        held = min(groups, key=len)
    chosen = set(held)
    rest = [number for number in range(len(examples)) if number not in chosen]
    return Selection(examples, rest), Selection(examples, sorted(held))


def _held_out_count(examples: int, share: float | None, count: int | None) -> int:
    """How many are to be held out."""
    if (share is None) == (count is None):
        raise ValueError(f"share={share} and count={count} were given; give one of them")
    if share is not None and not 0 < share < 1:
        raise ValueError(f"share={share}; it is a part of the examples: pass more than 0 and less than 1")
    wanted = count if share is None else round(share * examples)
    given = f"count={count}" if share is None else f"share={share}"
    assert wanted is not None
    if wanted < 1:
        fix = "pass count=1 or more" if share is None else "pass more (--hold-out)"
        raise ValueError(f"{given} of {examples} examples holds out {wanted}; {fix}")
    if wanted >= examples:
        raise ValueError(
            f"{given} of {examples} examples holds out {wanted}, which leaves {max(0, examples - wanted)} to train "
            "on; pass less"
        )
    return wanted


def _groups(examples: Sequence[Example], report: Progress) -> list[list[int]]:
    """Numbers of the examples that hang together, in the order of their first ones."""
    parents = list(range(len(examples)))

    def root(number: int) -> int:
        while parents[number] != number:
            parents[number] = parents[parents[number]]
            number = parents[number]
        return number

    seen: dict[Hashable, int] = {}
    for number, example in enumerate(examples):
        for key in _keys(example):
            other = root(seen.setdefault(key, number))
            parents[max(other, root(number))] = min(other, root(number))
        report(number + 1, len(examples))
    groups: dict[int, list[int]] = {}
    for number in range(len(examples)):
        groups.setdefault(root(number), []).append(number)
    return list(groups.values())


def _keys(example: Example) -> Iterator[Hashable]:
    """What an example may have in common with others: what it shows, or else its text."""
    frames = [frame for video in example.videos for frame in ([video] if isinstance(video, str) else video)]
    shown = [*example.pictures, *frames]
    for picture in shown:
        yield picture if isinstance(picture, str) else _digest(picture)
    if not shown:
        yield tuple(part["text"] for message in example.messages for part in message["content"])


def _digest(picture: Any) -> Hashable:
    return picture.mode, picture.size, hashlib.blake2b(picture.tobytes(), digest_size=16).digest()
