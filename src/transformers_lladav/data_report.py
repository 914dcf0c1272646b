"""What is in a file of training data, what is wrong with it, and how long its samples are."""

from array import array
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from .data import read_examples
from .media import check_media
from .prompt_view import PromptView, PromptViewer
from .record_files import Progress, RecordError
from .records import DEFAULT_QUESTION

MAX_BINS = 12


class Bin(NamedTuple):
    """How many samples have from `first` to `last` tokens."""

    first: int
    last: int
    samples: int


@dataclass
class Truncation:
    """What a cut after so many tokens would do.

    Attributes:
        max_length: tokens that are left.
        samples: how many are longer.
        tokens: how many they lose together.
        through_picture: sources of samples whose picture or video would be cut; they cannot be used.
        answerless: sources of samples that would keep nothing of their answers.
    """

    max_length: int
    samples: int = 0
    tokens: int = 0
    through_picture: list[str] = field(default_factory=list)
    answerless: list[str] = field(default_factory=list)


@dataclass
class DataReport:
    """The findings about training data.

    Attributes:
        good: records that can be used.
        bad: the errors of the others.
        kinds: good records by what they show.
        turns: good records by their number of answers.
        repeated_ids: ids that stand more than once, with the source of each repetition.
        lengths: tokens of each good record, pictures expanded.
        longest: tokens and source of the longest one.
        truncation: what a cut would do, if a length was given.
    """

    good: int = 0
    bad: list[RecordError] = field(default_factory=list)
    kinds: Counter[str] = field(default_factory=Counter)
    turns: Counter[int] = field(default_factory=Counter)
    repeated_ids: list[tuple[str, str]] = field(default_factory=list)
    lengths: "array[int]" = field(default_factory=lambda: array("Q"))
    longest: tuple[int, str] = (0, "")
    truncation: Truncation | None = None

    @property
    def records(self) -> int:
        """All records."""
        return self.good + len(self.bad)

    def histogram(self) -> list[Bin]:
        """The lengths in bins of equal width, a power of two, so that there are at most twelve."""
        if not self.lengths:
            return []
        width = 1
        while max(self.lengths) // width - min(self.lengths) // width >= MAX_BINS:
            width *= 2
        counts = Counter(length // width for length in self.lengths)
        return [Bin(n * width, (n + 1) * width - 1, counts[n]) for n in range(min(counts), max(counts) + 1)]

    def as_json(self) -> dict[str, Any]:
        """Everything, for a file: all bad records, and the lengths as figures and histogram."""
        tokens = None
        if self.lengths:
            tokens = {
                "total": sum(self.lengths),
                "shortest": min(self.lengths),
                "median": median(self.lengths),
                "longest": self.longest[0],
                "longest_source": self.longest[1],
                "histogram": [bin_._asdict() for bin_ in self.histogram()],
            }
        return {
            "records": self.records,
            "good": self.good,
            "bad": [{"source": error.source, "reason": error.reason} for error in self.bad],
            "kinds": dict(self.kinds),
            "turns": {str(turns): count for turns, count in sorted(self.turns.items())},
            "repeated_ids": [{"id": identity, "source": source} for identity, source in self.repeated_ids],
            "tokens": tokens,
            "truncation": vars(self.truncation) if self.truncation else None,
        }


def check_data(
    source: Any,
    processor: Any,
    *,
    image_folder: str | Path | None = None,
    allow_outside: bool = False,
    allow_urls: bool = False,
    question: str = DEFAULT_QUESTION,
    decode: bool = False,
    max_length: int | None = None,
    image_separator: str = "\n",
    on_progress: Progress | None = None,
) -> DataReport:
    r"""Read training data to the end and report everything about them.

    Args:
        source: as for `data.read_examples`.
        processor: a `LladaVProcessor`; decides how long samples are, and how large a picture may be.
        image_folder: as for `data.read_examples`.
        allow_outside: as for `data.read_examples`.
        allow_urls: as for `data.read_examples`.
        question: as for `data.read_examples`.
        decode: decode pictures and videos whole; without it only headers are read.
        max_length: a length to say what cutting there would lose.
        image_separator: as in training, `"\n"` in the official one.
        on_progress: is told how much of a file was read and how much there is.

    Returns:
        The report; bad records are in it.

    Raises:
        DataError: if the source cannot be read at all.
        ImportError: if there is a video file and PyAV is not installed.
    """
    report = DataReport(truncation=None if max_length is None else Truncation(max_length))
    examples = read_examples(
        source,
        image_folder=image_folder,
        allow_outside=allow_outside,
        allow_urls=allow_urls,
        question=question,
        check="paths",
        on_bad=report.bad.append,
        on_progress=on_progress,
    )
    viewer, seen = PromptViewer(processor, image_separator), set[str]()
    limit = processor.image_processor.max_image_pixels
    for example in examples:
        try:
            sizes = check_media(example.messages, limit, decode)
            view = viewer.view(example.messages, sizes)
        except RecordError as error:
            report.bad.append(RecordError.of(error, example.source))
            continue
        if report.truncation is not None:
            _cut(report.truncation, view, example.source)
        report.good += 1
        report.kinds[example.kind] += 1
        report.turns[example.turns] += 1
        if example.id != example.source and example.id in seen:
            report.repeated_ids.append((example.id, example.source))
        seen.add(example.id)
        report.longest = max(report.longest, (view.length, example.source), key=lambda pair: pair[0])
        report.lengths.append(view.length)
    return report


def _cut(truncation: Truncation, view: PromptView, source: str) -> None:
    """Add what the cut would do to a sample."""
    if (cut := view.cut(truncation.max_length)) is not None:
        truncation.samples += 1
        truncation.tokens += cut.tokens
        truncation.through_picture += [source] * cut.through_picture
        truncation.answerless += [source] * cut.answerless
