"""Examples with a number and an epoch: what their noise is drawn from."""

from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data import Dataset


@dataclass(frozen=True)
class Sample:
    """An example with what its noise is drawn from.

    Attributes:
        messages: the chat, as the processor takes it.
        source: what messages call it, such as "train.jsonl:17".
        index: its number in the data.
        epoch: how often the data were gone through before.
    """

    messages: list[dict[str, Any]]
    source: str
    index: int
    epoch: int


class Numbered(Dataset[Sample]):
    """Examples that know their number and the epoch; a dataset for a `DataLoader` with a `Collator`.

    The epoch lies in shared memory, so that workers which outlive an epoch see it change. The order of
    `TrainingBatches` follows it as well: nothing else has to be told.

    Args:
        examples: with `.messages` and `.source`, or dictionaries with "messages".
    """

    def __init__(self, examples: Sequence[Any]) -> None:
        self.examples = examples
        self._epoch = torch.zeros((), dtype=torch.long).share_memory_()

    @property
    def epoch(self) -> int:
        """The epoch that samples are of."""
        return int(self._epoch)

    def set_epoch(self, epoch: int) -> None:
        """Say which epoch begins; every epoch has an order and noise of its own."""
        self._epoch.fill_(epoch)

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> Sample:
        example = self.examples[index]
        source = field_of(example, "source") or f"example {index}"
        return Sample(field_of(example, "messages"), source, index, self.epoch)


class Selection(Sequence[Any]):
    """Some examples of a sequence, by number; can be pickled if the sequence can.

    Args:
        examples: the sequence.
        numbers: of those that are meant, in the order they shall have.
    """

    def __init__(self, examples: Sequence[Any], numbers: Iterable[int]) -> None:
        self.examples, self.numbers = examples, array("Q", numbers)

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self.examples[number] for number in self.numbers[index]]
        return self.examples[self.numbers[index]]


def field_of(example: Any, name: str) -> Any:
    """A field of an example, be it an object or a dictionary.

    Args:
        example: with or without the field.
        name: of the field.

    Returns:
        Its value, None if there is none.
    """
    return example.get(name) if isinstance(example, dict) else getattr(example, name, None)
