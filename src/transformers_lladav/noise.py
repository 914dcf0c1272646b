"""Where a sample's noise comes from: its own number and nothing else, so that a run can be taken up anywhere.

The forward process itself is in `diffusion_lladav`. Here is what a training loop adds: draws that do not depend on
the batch, the worker or what was drawn before, levels that are the same in every evaluation, and a second view.
"""

import hashlib
from typing import NamedTuple

import torch

from .diffusion_lladav import IGNORE_INDEX, NOISE_FLOOR, NoisedBatch, hide_tokens, hiding_probability

# What `hide_blocks` draws: the share of blocks that are hidden whole, how little of others is hidden at least, and
# the lengths of the runs that get holes.
WHOLE_BLOCKS = 0.5
LEAST_LEVEL = 0.1
HOLE_EVERY = 3
# The share of runs that `hide_sparsely` hides but for one token.
LEFT_ALONE = 0.5

# Multiples of it, without their whole part, lie evenly between 0 and 1 however many there are (Weyl's sequence).
GOLDEN_RATIO = 0.6180339887498949


class Noise(NamedTuple):
    """The draws for one sample.

    Attributes:
        level: (1,), from 0 to 1.
        draws: (1, length), from 0 to 1.
    """

    level: torch.Tensor
    draws: torch.Tensor


def numbered_generator(seed: int, *number: int | str) -> torch.Generator:
    """A generator that depends on the seed and a sample's number, and on nothing else.

    Args:
        seed: of the run.
        *number: such as epoch and index.

    Returns:
        A generator on the CPU.
    """
    digest = hashlib.blake2b("/".join(map(str, (seed, *number))).encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "big") >> 1)


def training_noise(length: int, generator: torch.Generator | None = None) -> Noise:
    """Draw a sample's noise in the order of the official training: the level, then the positions.

    Args:
        length: of the sample.
        generator: source of the draws; the global one by default.

    Returns:
        The draws.
    """
    return Noise(torch.rand(1, generator=generator), torch.rand(1, length, generator=generator))


def fixed_noise(length: int, seed: int, index: int) -> Noise:
    """The noise of an evaluation: levels that are spread evenly over the samples, the same every time.

    Args:
        length: of the sample.
        seed: of the run.
        index: of the sample; samples that follow one another have levels that are far apart.

    Returns:
        The draws.
    """
    level = (0.5 + index * GOLDEN_RATIO) % 1
    return Noise(torch.tensor([level]), torch.rand(1, length, generator=numbered_generator(seed, "fixed", index)))


def complementary_views(
    input_ids: torch.Tensor,
    labels: torch.Tensor,
    noise: Noise,
    mask_token_id: int,
    protected_token_ids: tuple[int, ...] = (),
) -> tuple[NoisedBatch, NoisedBatch]:
    """Two views of a sample that hide every learnable token once, the one or the other.

    LaViDa, arXiv:2505.16839, "complementary masking": no token goes unused, and the two losses vary less together
    than two of independent noise. The second view hides with probability q = 1 - p. Unlike there, the expectation of
    the two views' mean is exactly that of one view: where q is below the floor of p, which bounds the weights, the
    second view counts nothing and the first twice.

    Args:
        input_ids: (1, length) token ids.
        labels: (1, length), -100 where nothing is to be learned.
        noise: of the first view.
        mask_token_id: the token that hides others.
        protected_token_ids: tokens that are never hidden.

    Returns:
        Both views. Their loss is to be averaged.
    """
    everything = Noise(torch.ones_like(noise.level), torch.zeros_like(noise.draws))
    rest = hide_tokens(input_ids, labels, *everything, mask_token_id, protected_token_ids)
    first = hide_tokens(input_ids, labels, *noise, mask_token_id, protected_token_ids)
    hidden = (rest.labels != IGNORE_INDEX) & (first.labels == IGNORE_INDEX)
    complement = 1 - hiding_probability(noise.level)[:, None]  # (1, 1)
    counts = complement >= NOISE_FLOOR
    second = NoisedBatch(
        input_ids=torch.where(hidden, mask_token_id, input_ids),
        labels=torch.where(hidden, labels, IGNORE_INDEX),
        # `rest` hides with probability 1, so that its weights are 1 / number of learnable tokens.
        loss_weights=torch.where(hidden & counts, rest.loss_weights / complement.clamp(min=NOISE_FLOOR), 0.0),
    )
    first.loss_weights = first.loss_weights * torch.where(counts, 1.0, 2.0)
    return first, second


def hide_blocks(
    input_ids: torch.Tensor,
    labels: torch.Tensor,
    worth: torch.Tensor,
    block_length: int,
    mask_token_id: int,
    generator: torch.Generator | None = None,
    holes: float = 0.0,
) -> NoisedBatch:
    """Hide answers as they are met while `generate` writes them block by block.

    Every answer gets a block of its own draw: the blocks before it are there, of the block itself some tokens or all
    are hidden, and everything after it is, without being learned: what it is follows from what is written first. Only
    blocks that hold something of an answer besides its filling are drawn. Longer answers may get holes instead, as
    they are met by infilling, in every three tokens; see `hide_sparsely`. The weights of an answer sum to
    1 / number of answers. This is not the bound of the likelihood that `hide_tokens` gives, which spreads its samples
    over all ways to hide tokens; semi-autoregressive generation meets few of them (LLaDA, arXiv:2502.09992, section
    2.4).

    Args:
        input_ids: (1, length) token ids.
        labels: (1, length), -100 where nothing is to be learned; an answer is a run of others.
        worth: (length,), what a token counts next to the others; below 1 for what fills an answer up.
        block_length: as in generation.
        mask_token_id: the token that hides others.
        generator: source of the draws; the global one by default.
        holes: share of the answers longer than a block that get holes.

    Returns:
        The noised sample.
    """
    learned = labels[0] != IGNORE_INDEX
    hidden = torch.zeros_like(learned)
    weights = torch.zeros(labels.shape[1])
    answers = runs(learned)
    for start, end in answers:
        written = max(int((worth[start:end] == 1).sum()), 1)
        draw = torch.rand(4, generator=generator).tolist()
        if written > block_length and draw[3] < holes:
            first, last = start, start + written
            hidden[_holes(HOLE_EVERY, first, last, generator)] = True
        else:
            first = start + int(draw[0] * -(-written // block_length)) * block_length
            last = min(first + block_length, end)
            level = 1.0 if draw[1] < WHOLE_BLOCKS else LEAST_LEVEL + (1 - LEAST_LEVEL) * draw[2]
            draws = torch.rand(last - first, generator=generator)
            hidden[first:last] = draws <= max(level, float(draws.min()))
            hidden[last:end] = True
        learned[last:end] = False
        counts = torch.where(hidden[first:last], worth[first:last], 0.0)
        weights[first:last] = counts / counts.sum() / len(answers)
    return NoisedBatch(
        input_ids=torch.where(hidden, mask_token_id, input_ids),
        labels=torch.where(hidden & learned, labels, IGNORE_INDEX),
        loss_weights=weights[None],
    )


def hide_sparsely(
    input_ids: torch.Tensor,
    labels: torch.Tensor,
    worth: torch.Tensor,
    every: int,
    mask_token_id: int,
    generator: torch.Generator | None = None,
) -> NoisedBatch:
    """Hide one token of every few, or all but one: what is hidden follows from what is left, and the picture.

    At other levels much of what is hidden of a list of facts cannot be known, and what can is lost in that: a small
    model learned to look things up several times as fast from such samples. Fillings are not hidden. The weights of
    an answer sum to 1 / number of answers.

    Args:
        input_ids: (1, length) token ids.
        labels: (1, length), -100 where nothing is to be learned; an answer is a run of others.
        worth: (length,), what a token counts next to the others; below 1 for what fills an answer up.
        every: an answer is cut into runs of so many tokens. Of every run one token is drawn, and hidden, or as often
            left as the only one.
        mask_token_id: the token that hides others.
        generator: source of the draws; the global one by default.

    Returns:
        The noised sample.
    """
    hidden = torch.zeros(labels.shape[1], dtype=torch.bool)
    weights = torch.zeros(labels.shape[1])
    answers = runs((labels[0] != IGNORE_INDEX) & (worth == 1))
    for start, end in answers:
        chosen = _holes(every, start, end, generator)
        hidden[chosen] = True
        weights[chosen] = 1 / len(chosen) / len(answers)
    return NoisedBatch(
        input_ids=torch.where(hidden, mask_token_id, input_ids),
        labels=torch.where(hidden, labels, IGNORE_INDEX),
        loss_weights=weights[None],
    )


def _holes(every: int, start: int, end: int, generator: torch.Generator | None) -> torch.Tensor:
    """Cut positions into runs of `every`, and choose one of each, or all others."""
    firsts = torch.arange(start, end, every)
    lengths = (end - firsts).clamp(max=every)
    one = firsts + (torch.rand(len(firsts), generator=generator) * lengths).long()
    others = (torch.rand(len(firsts), generator=generator) < LEFT_ALONE) & (lengths > 1)
    places = torch.arange(start, end)
    run = (places - start) // every
    return places[(places == one[run]) ^ others[run]]


def runs(wanted: torch.Tensor) -> list[tuple[int, int]]:
    """Find the stretches of what is wanted.

    Args:
        wanted: (length,) of bool.

    Returns:
        Start and end of each.
    """
    edges = torch.diff(wanted.int(), prepend=torch.zeros(1), append=torch.zeros(1)).nonzero().flatten().tolist()
    return list(zip(edges[::2], edges[1::2], strict=True))
