"""The forward process of masked diffusion: which answer tokens are hidden, and what each counts in the loss.

LLaDA, arXiv:2502.09992, section 2.2 and algorithm 2: a sample gets one noise level t, every answer token is replaced
by the mask token with probability p = (1 - eps) t + eps, and the loss weighs each replaced token by 1 / p.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

IGNORE_INDEX = -100
NOISE_FLOOR = 1e-3
CHUNK_ROWS = 256


@dataclass
class NoisedBatch:
    """A batch after the forward process.

    Attributes:
        input_ids: (batch, length), the ids with some of them replaced by the mask token.
        labels: (batch, length), the hidden token at replaced positions, -100 elsewhere.
        loss_weights: (batch, length), float32, what each replaced position counts.
    """

    input_ids: torch.Tensor
    labels: torch.Tensor
    loss_weights: torch.Tensor


def add_mask_noise(
    input_ids: torch.Tensor,
    labels: torch.Tensor,
    mask_token_id: int,
    protected_token_ids: tuple[int, ...] = (),
    generator: torch.Generator | None = None,
) -> NoisedBatch:
    """Hide labelled tokens at one random noise level per sample.

    Unlike upstream, where the noise is always drawn from the global generator, a generator may be given. The draws
    are upstream's: (batch) levels first, then (batch, length) positions, both uniform in float32.

    Args:
        input_ids: (batch, length) token ids, pictures already expanded to placeholders.
        labels: (batch, length), -100 where nothing is to be learned.
        mask_token_id: the token that hides others.
        protected_token_ids: tokens that are never hidden, whatever their label (picture placeholders).
        generator: source of the draws, on the device of `input_ids`; the global one by default.

    Returns:
        The noised batch. A sample's weights are 1 / (p * number of its labelled tokens).
    """
    batch, length = input_ids.shape
    level = torch.rand(batch, generator=generator, device=input_ids.device)
    draws = torch.rand(batch, length, generator=generator, device=input_ids.device)
    return hide_tokens(input_ids, labels, level, draws, mask_token_id, protected_token_ids)


def hide_tokens(
    input_ids: torch.Tensor,
    labels: torch.Tensor,
    level: torch.Tensor,
    draws: torch.Tensor,
    mask_token_id: int,
    protected_token_ids: tuple[int, ...] = (),
) -> NoisedBatch:
    """Hide labelled tokens by given draws; `add_mask_noise` without its randomness.

    Args:
        input_ids: (batch, length) token ids, pictures already expanded to placeholders.
        labels: (batch, length), -100 where nothing is to be learned.
        level: (batch,), noise level of each sample, from 0 to 1.
        draws: (batch, length), from 0 to 1; a position is hidden if its draw is below (1 - eps) level + eps.
        mask_token_id: the token that hides others.
        protected_token_ids: tokens that are never hidden, whatever their label (picture placeholders).

    Returns:
        The noised batch. A sample's weights are 1 / (p * number of its labelled tokens).
    """
    probability = hiding_probability(level)[:, None]  # (batch, 1)
    learnable = labels != IGNORE_INDEX
    for token_id in protected_token_ids:
        learnable = learnable & (input_ids != token_id)
    hidden = learnable & (draws < probability)
    answer_length = learnable.sum(dim=1, keepdim=True).clamp(min=1)
    weights = hidden / (probability * answer_length)
    return NoisedBatch(
        input_ids=torch.where(hidden, mask_token_id, input_ids),
        labels=torch.where(hidden, labels, IGNORE_INDEX),
        loss_weights=weights,
    )


def hiding_probability(level: torch.Tensor) -> torch.Tensor:
    """The probability (1 - eps) t + eps that a token is hidden at noise level t; eps bounds the weight 1 / p."""
    return (1 - NOISE_FLOOR) * level + NOISE_FLOOR


def weighted_token_loss(logits: torch.Tensor, labels: torch.Tensor, weights: torch.Tensor, batch: int) -> torch.Tensor:
    """Sum of weighted cross-entropies over the batch size, LLaDA's equation 3 for given noise.

    Args:
        logits: (positions, vocabulary) of the replaced positions of all samples.
        labels: (positions,) the tokens that were hidden.
        weights: (positions,) what each counts.
        batch: number of samples the sum is divided by.

    Returns:
        A scalar in float32; zero, with a graph, when no position was replaced.
    """
    losses = F.cross_entropy(logits.float(), labels, reduction="none")
    return (losses * weights).sum() / batch


def chunked_token_loss(
    hidden_states: torch.Tensor,
    head: Callable[[torch.Tensor], torch.Tensor],
    labels: torch.Tensor,
    weights: torch.Tensor,
    batch: int,
    chunk_rows: int = CHUNK_ROWS,
) -> torch.Tensor:
    """`weighted_token_loss` of a head's logits, which exist for a few positions at a time.

    In training the logits of a chunk are computed again on the way back instead of being kept: one more product with
    the head for replaced positions, against the memory of all their logits (2 GB for 4,096 positions in float32).

    Args:
        hidden_states: (positions, hidden) of the replaced positions of all samples.
        head: gives (rows, vocabulary) for (rows, hidden).
        labels: (positions,) the tokens that were hidden.
        weights: (positions,) what each counts.
        batch: number of samples the sum is divided by.
        chunk_rows: positions whose logits exist together.

    Returns:
        A scalar in float32; zero, with a graph, when no position was replaced.
    """

    def chunk_loss(hidden: torch.Tensor, chunk_labels: torch.Tensor, chunk_weights: torch.Tensor) -> torch.Tensor:
        return weighted_token_loss(head(hidden), chunk_labels, chunk_weights, batch)

    chunks = zip(*(part.split(chunk_rows) for part in (hidden_states, labels, weights)), strict=True)
    if not torch.is_grad_enabled():
        return torch.stack([chunk_loss(*chunk) for chunk in chunks]).sum()
    return torch.stack([checkpoint(chunk_loss, *chunk, use_reentrant=False) for chunk in chunks]).sum()
