"""Training data that are read while training goes on, for sources too large to be looked at before."""

import warnings
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import IterableDataset, get_worker_info

from .data import Check, first_of, read_examples
from .media import MAX_IMAGE_PIXELS
from .noise import numbered_generator
from .record_files import DataError, RecordError
from .records import DEFAULT_QUESTION, Example
from .samples import Sample


class Stream(IterableDataset[Sample]):
    """Samples in the order of their file, or shuffled within a buffer, over and over; a dataset for a `DataLoader`.

    It never ends: after the last record the first one comes again, as a sample of the next epoch, and how long
    training takes is said in steps (`max_steps`). A place in it is one number, so that a run is taken up by reading
    on to where it stopped, in whatever epoch that was. The order depends on seed and epoch only.

    A DataLoader's workers each read everything and keep every so manieth block of `block` samples. With the device
    batch size times the number of processes as `block`, the batches are the same with any number of workers. Processes
    are left to accelerate: with `dispatch_batches=False` each reads everything and takes every so manieth device
    batch, so that the same global batches come about with any number of processes, too. Its default for iterable
    datasets, `dispatch_batches=True`, joins batches of the main process and slices them by rows, which cannot be done
    with rows of different widths and pictures of different numbers of tiles.

    Args:
        source: as for `data.read_examples`, but something that can be gone through again, such as a file or an
            `IterableDataset` of the datasets library.
        block: consecutive samples that go to the same worker.
        shuffle_buffer: samples that are held to draw the next one from; 0 keeps the order of the source.
        seed: of the run.
        skip_bad: leave bad records out, with a warning each, given once; without it the first one is an error.
        name: what messages call a record, if the source is no file.
        image_folder: as for `data.read_examples`.
        allow_outside: as for `data.read_examples`.
        allow_urls: as for `data.read_examples`.
        question: as for `data.read_examples`.
        check: as for `data.read_examples`; everybody who reads looks at all headers, which "paths" saves.
        max_image_pixels: as for `data.read_examples`.

    Raises:
        TypeError: if the source can be gone through only once.
        ValueError: if a size is out of range.
    """

    def __init__(
        self,
        source: Any,
        *,
        block: int = 1,
        shuffle_buffer: int = 0,
        seed: int = 0,
        skip_bad: bool = False,
        name: str = "record",
        image_folder: str | Path | None = None,
        allow_outside: bool = False,
        allow_urls: bool = False,
        question: str = DEFAULT_QUESTION,
        check: Check = "headers",
        max_image_pixels: int = MAX_IMAGE_PIXELS,
    ) -> None:
        if isinstance(source, Iterator):
            raise TypeError(
                f"a {type(source).__name__} can be gone through only once, and training comes back to the start; give "
                "a file, a list or an IterableDataset"
            )
        if block < 1 or shuffle_buffer < 0:
            raise ValueError(f"block={block}, shuffle_buffer={shuffle_buffer}; give 1 or more, and 0 or more")
        self.source, self.block, self.shuffle_buffer, self.seed = source, block, shuffle_buffer, seed
        self.skip_bad = skip_bad
        self._options: dict[str, Any] = {
            "name": name,
            "image_folder": image_folder,
            "allow_outside": allow_outside,
            "allow_urls": allow_urls,
            "question": question,
            "check": check,
            "max_image_pixels": max_image_pixels,
        }
        self._epoch = torch.zeros((), dtype=torch.long).share_memory_()

    @property
    def epoch(self) -> int:
        """The epoch that reading begins with."""
        return int(self._epoch)

    def set_epoch(self, epoch: int) -> None:
        """Say which epoch reading begins with the next time; it goes on to later ones by itself."""
        self._epoch.fill_(epoch)

    def __iter__(self) -> Iterator[Sample]:
        worker = get_worker_info()
        number, workers = (0, 1) if worker is None else (worker.id, worker.num_workers)
        samples = (sample for epoch in count(self.epoch) for sample in self._samples_of(epoch, number == 0))
        for place, sample in enumerate(samples):
            if place // self.block % workers == number:
                yield sample

    def _samples_of(self, epoch: int, warn: bool) -> Iterator[Sample]:
        """All samples of an epoch in its order."""
        generator = numbered_generator(self.seed, "stream", epoch)
        held: list[Sample] = []
        for index, example in enumerate(self.examples(warn and epoch == self.epoch)):
            sample = Sample(example.messages, example.source, index, epoch)
            if len(held) < self.shuffle_buffer:
                held.append(sample)
            elif not held:
                yield sample
            else:
                drawn = int(torch.randint(len(held), (), generator=generator))
                yield held[drawn]
                held[drawn] = sample
        for drawn in torch.randperm(len(held), generator=generator).tolist():
            yield held[drawn]

    def examples(self, warn: bool = False) -> Iterator[Example]:
        """Read the source once, in its own order.

        Args:
            warn: name the records that are left out.

        Yields:
            The examples.

        Raises:
            DataError: if the source cannot be read, or there was no example in it.
            RecordError: at the first bad record, unless they are left out.
        """
        bad: list[RecordError] = []

        def leave_out(error: RecordError) -> None:
            bad.append(error)
            if warn:
                warnings.warn(f"left out: {error}", stacklevel=2)

        good = 0
        on_bad = leave_out if self.skip_bad else None
        for example in read_examples(_records(self.source), on_bad=on_bad, **self._options):
            good += 1
            yield example
        if not good:
            reasons = f"all {len(bad)} are bad; the first: {first_of(bad)}" if bad else "there are none"
            raise DataError(f"no record is left: {reasons}")


def _records(source: Any) -> Any:
    """What is gone through; a stream of the datasets library would give a worker only a part, but not in batches."""
    if isinstance(source, IterableDataset) and hasattr(source, "iter"):
        return ({name: values[0] for name, values in row.items()} for row in source.iter(batch_size=1))
    return source
