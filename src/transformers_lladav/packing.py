"""Several samples in one row, none of which sees another.

A packed row holds no padding to speak of, where a padded batch is as wide as its longest sample. Positions start at 0
with every sample, and a block-diagonal mask keeps them apart, so that each is what it would be alone.
"""

from collections.abc import Sequence

import torch

NO_SAMPLE = -1


def pack_lengths(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Deal samples out to rows: the longest first, each to the first row it fits in.

    Args:
        lengths: tokens of each sample.
        capacity: tokens that a row holds.

    Returns:
        Rows of sample numbers, each in ascending order; every sample stands in one of them.

    Raises:
        ValueError: if a sample fits into no row.
    """
    rows: list[list[int]] = []
    free: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        length = lengths[index]
        if length > capacity:
            raise ValueError(f"sample {index} has {length} tokens, but a row holds {capacity}; make rows of {length}")
        for number, space in enumerate(free):
            if length <= space:
                rows[number].append(index)
                free[number] -= length
                break
        else:
            rows.append([index])
            free.append(capacity - length)
    return [sorted(row) for row in rows]


def packed_positions(samples: torch.Tensor) -> torch.Tensor:
    """Number the positions of every sample from 0.

    Args:
        samples: (rows, length), which sample each position belongs to; those of a sample stand together.

    Returns:
        (rows, length) position numbers.
    """
    index = torch.arange(samples.shape[1], device=samples.device).expand_as(samples)
    begins = torch.ones_like(samples, dtype=torch.bool)
    begins[:, 1:] = samples[:, 1:] != samples[:, :-1]
    return index - torch.where(begins, index, 0).cummax(dim=1).values


def packed_mask(samples: torch.Tensor, turns: torch.Tensor | None = None) -> torch.Tensor:
    """Say which positions see which: those of the same sample, and of no later turn if turns are given.

    Args:
        samples: (rows, length), which sample each position belongs to, `NO_SAMPLE` for padding.
        turns: (rows, length), the turn of each position, for the conversation mask.

    Returns:
        (rows, 1, length, length), True where a query (third axis) sees a key (fourth). Padding sees padding, so that
        no row of the attention is empty.
    """
    seen = samples[:, :, None] == samples[:, None, :]
    if turns is not None:
        seen = seen & (turns[:, None, :] <= turns[:, :, None])
    return seen[:, None]
