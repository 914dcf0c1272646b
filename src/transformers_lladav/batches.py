"""Which samples make up an optimiser step, decided before anybody asks how many devices there are."""

from collections.abc import Iterator, Sequence
from itertools import cycle, islice

import torch
from torch.utils.data import Sampler
from transformers.trainer_pt_utils import get_length_grouped_indices

from .noise import numbered_generator
from .samples import Numbered


class TrainingBatches(Sampler[list[int]]):
    """The batches of an epoch, in an order that depends on seed and epoch only; a `batch_sampler`.

    Samples are shuffled, the order is cut into global batches, and each of these into device batches, which follow one
    another. Whoever takes them in turn, as accelerate deals them out to processes, or one process that accumulates
    gradients, sees the same global batches. The last global batch is filled up with samples from the start of the
    epoch's order, so that every optimiser step is a mean over as many samples; data with fewer samples than that are
    gone through several times.

    With lengths, samples are sorted by length within large groups, as in transformers' `LengthGroupedSampler`, and
    the global batches are shuffled again. The one with the longest sample comes first, so that what does not fit
    fails at once, and the one that is filled up comes last. Within a global batch long samples come first, so that
    device batches which are computed at the same time are about as long.

    Args:
        data: the samples; their epoch decides the order.
        global_batch_size: samples of an optimiser step.
        device_batch_size: samples of a batch; the global batch size is a multiple of it.
        seed: of the run.
        lengths: tokens of all samples, such as from `lengths.check_lengths`, to put those of similar length together.

    Raises:
        ValueError: if there are no samples, the sizes do not fit together, or there is not one length for each sample.
    """

    drop_last = False

    def __init__(
        self,
        data: Numbered,
        global_batch_size: int,
        device_batch_size: int,
        seed: int = 0,
        lengths: Sequence[int] | None = None,
    ) -> None:
        if not len(data):
            raise ValueError("there are 0 samples to make batches of; give at least one")
        if min(global_batch_size, device_batch_size) < 1 or global_batch_size % device_batch_size:
            device = max(device_batch_size, 1)
            raise ValueError(
                f"global_batch_size={global_batch_size} is not a multiple of device_batch_size={device_batch_size}; "
                f"pass such as {max(global_batch_size // device, 1) * device} and {device}"
            )
        if lengths is not None and len(data) != len(lengths):
            raise ValueError(f"{len(lengths)} lengths were given for {len(data)} samples; give one each")
        self.data, self.lengths, self.seed = data, lengths, seed
        self.global_batch_size, self.batch_size = global_batch_size, device_batch_size

    def set_epoch(self, epoch: int) -> None:
        """Say which epoch begins; the samples are told as well."""
        self.data.set_epoch(epoch)

    @property
    def steps(self) -> int:
        """Optimiser steps of an epoch."""
        return -(-len(self.data) // self.global_batch_size)

    def __len__(self) -> int:
        return self.steps * (self.global_batch_size // self.batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        for batch in self._global_batches():
            if self.lengths is not None:
                batch.sort(key=self.lengths.__getitem__, reverse=True)
            for start in range(0, self.global_batch_size, self.batch_size):
                yield batch[start : start + self.batch_size]

    def _global_batches(self) -> list[list[int]]:
        """The samples of every optimiser step."""
        size, count = self.global_batch_size, len(self.data)
        generator = numbered_generator(self.seed, "order", self.data.epoch)
        if self.lengths is None:
            order = torch.randperm(count, generator=generator).tolist()
        else:
            order = get_length_grouped_indices(self.lengths, size, generator=generator)
        endless = cycle(order)
        batches = [list(islice(endless, size)) for _ in range(self.steps)]
        if self.lengths is None:
            return batches
        between = range(1, count // size)  # neither the first nor one that was filled up
        shuffled = [between[number] for number in torch.randperm(len(between), generator=generator).tolist()]
        return [batches[step] for step in (0, *shuffled, *range(max(1, count // size), self.steps))]
