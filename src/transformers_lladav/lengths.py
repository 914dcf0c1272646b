"""How long samples are once their pictures are expanded, and batches of samples of similar length."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch.utils.data import Sampler
from transformers.trainer_pt_utils import get_length_grouped_indices

from .media import check_media
from .noise import numbered_generator
from .prompt_view import PromptViewer
from .samples import Numbered


def merged_lengths(chats: Iterable[list[dict[str, Any]]], processor: Any, image_separator: str = "\n") -> list[int]:
    """Count the tokens of chats with their pictures and videos expanded; of pictures only the headers are read.

    Args:
        chats: the messages of each example.
        processor: a `LladaVProcessor`.
        image_separator: what stands between a picture and the text after it.

    Returns:
        The lengths of what the processor makes of them.

    Raises:
        RecordError: if a picture cannot be read.
    """
    viewer = PromptViewer(processor, image_separator)
    in_parts = ([_in_parts(message) for message in messages] for messages in chats)
    return [viewer.view(messages, check_media(messages)).length for messages in in_parts]


def _in_parts(message: dict[str, Any]) -> dict[str, Any]:
    content = message["content"]
    return {**message, "content": [{"type": "text", "text": content}]} if isinstance(content, str) else message


class LengthGroupedBatches(Sampler[list[int]]):
    """Batches of samples of similar length, in another random order every epoch; a `batch_sampler`.

    Samples are shuffled, sorted by length within large groups, as in transformers' `LengthGroupedSampler`, and the
    batches are shuffled again. The batch with the longest sample comes first, so that what does not fit fails at
    once, and one that is too small comes last.

    Args:
        data: the samples; their epoch decides the order.
        lengths: of all of them, such as from `merged_lengths`.
        batch_size: samples per batch.
        seed: of the run.
        drop_last: leave out a last batch that is too small.
    """

    def __init__(
        self, data: Numbered, lengths: Sequence[int], batch_size: int, seed: int = 0, drop_last: bool = False
    ) -> None:
        if len(data) != len(lengths):
            raise ValueError(f"{len(lengths)} lengths were given for {len(data)} samples; give one each")
        if not lengths or batch_size < 1:
            raise ValueError(f"{len(lengths)} samples in batches of {batch_size}; give one sample and one per batch")
        self.data, self.lengths, self.batch_size, self.seed = data, lengths, batch_size, seed
        self.drop_last = drop_last

    def __len__(self) -> int:
        whole, rest = divmod(len(self.lengths), self.batch_size)
        return whole + int(rest > 0 and not self.drop_last)

    def __iter__(self) -> Iterator[list[int]]:
        generator = numbered_generator(self.seed, "order", self.data.epoch)
        order = get_length_grouped_indices(self.lengths, self.batch_size, generator=generator)
        batches = [order[start : start + self.batch_size] for start in range(0, len(order), self.batch_size)]
        batches = batches[: len(self)]
        whole = [batch for batch in batches[1:] if len(batch) == self.batch_size]
        yield from batches[:1]
        yield from (whole[number] for number in torch.randperm(len(whole), generator=generator).tolist())
        yield from batches[1 + len(whole) :]
