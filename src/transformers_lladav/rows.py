"""Samples on their way into a batch: tokens, what is to be learned of them, and their pictures."""

from dataclasses import dataclass, replace

import torch

from .diffusion_lladav import IGNORE_INDEX


@dataclass
class Row:
    """A sample on its way into a batch.

    Attributes:
        input_ids: (length,), clean or noised.
        labels: (length,), what is to be learned; after noising, what is hidden.
        loss_weights: (length,), what each hidden position counts; zeros in a clean row.
        turns: (length,), turn of each position.
        media: pictures and videos, as the model takes them.
        name: what messages call the sample.
        number: epoch and index, None if it has none.
        worth: (length,), what each position counts next to the others: less if it only fills a canvas up.
    """

    input_ids: torch.Tensor
    labels: torch.Tensor
    loss_weights: torch.Tensor
    turns: torch.Tensor
    media: dict[str, torch.Tensor]
    name: str
    number: tuple[int, int] | None
    worth: torch.Tensor

    def __len__(self) -> int:
        return len(self.input_ids)


def extended(row: Row, tokens: torch.Tensor, place: int | None = None, worth: float = 1.0) -> Row:
    """Put more tokens into a clean row, which are learned and of the turn before.

    Args:
        row: clean.
        tokens: (more,), their ids.
        place: where they begin, not 0; by default behind everything.
        worth: what each of them counts.

    Returns:
        Another row.
    """
    place = len(row) if place is None else place

    def with_more(field: torch.Tensor, more: torch.Tensor) -> torch.Tensor:
        return torch.cat([field[:place], more, field[place:]])

    return replace(
        row,
        input_ids=with_more(row.input_ids, tokens),
        labels=with_more(row.labels, tokens),
        loss_weights=with_more(row.loss_weights, torch.zeros(len(tokens))),
        turns=with_more(row.turns, row.turns[place - 1].expand(len(tokens))),
        worth=with_more(row.worth, torch.full((len(tokens),), worth)),
    )


def worth_scale(row: Row) -> torch.Tensor:
    """What the weights of a row are multiplied with for what its positions are worth.

    Args:
        row: clean.

    Returns:
        (length,); its mean over what is learned is 1, so that the weights sum to what they did.
    """
    learned = row.worth[row.labels != IGNORE_INDEX]
    return row.worth * (len(learned) / learned.sum()) if len(learned) else row.worth


def length_unexpanded(row: Row, placeholders: tuple[int, ...]) -> int:
    """Count the tokens of a row as if every picture and video was a single one.

    Args:
        row: clean.
        placeholders: ids of pictures and videos.

    Returns:
        The number.
    """
    expanded = int(torch.isin(row.input_ids, torch.tensor(placeholders)).sum())
    return len(row) - expanded + sum(len(row.media.get(name, ())) for name in ("image_sizes", "video_frame_counts"))
