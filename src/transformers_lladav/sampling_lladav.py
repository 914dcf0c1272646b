"""The pieces of one denoising step: candidates with confidences, how many to commit, where an answer stops.

Follows LLaDA's sampling (arXiv:2502.09992, section 2.4 and algorithms 4 and 5) as LLaDA-V uses it.
"""

from dataclasses import dataclass
from typing import Protocol

import torch


@dataclass
class Prediction:
    """What the model would write at each position of the live block.

    Attributes:
        tokens: (batch, block), the candidate per position.
        confidence: (batch, block), float64, how sure it is; only masked positions are meaningful.
    """

    tokens: torch.Tensor
    confidence: torch.Tensor


class RandomDraws(Protocol):
    """Source of the uniform numbers of one step. Asked once per step, tokens before positions."""

    def tokens(self, rows: torch.Tensor, vocabulary: int) -> torch.Tensor:
        """(rows that are true, vocabulary) float64 uniforms for sampling candidates."""
        ...

    def positions(self, rows: torch.Tensor) -> torch.Tensor:
        """(batch, block) uniforms for choosing positions at random."""
        ...


class SampleDraws:
    """Draws from one generator per sample, so that no sample depends on its neighbours in the batch."""

    def __init__(self, generators: list[torch.Generator]) -> None:
        self.generators = generators

    def tokens(self, rows: torch.Tensor, vocabulary: int) -> torch.Tensor:
        draws = [
            torch.rand(int(row.sum()), vocabulary, dtype=torch.float64, generator=generator, device=generator.device)
            for row, generator in zip(rows, self.generators, strict=True)
        ]
        return torch.cat(draws).to(rows.device)

    def positions(self, rows: torch.Tensor) -> torch.Tensor:
        draws = [torch.rand(rows.shape[1], generator=item, device=item.device) for item in self.generators]
        return torch.stack(draws).to(rows.device)


class OfficialDraws:
    """The official implementation's draws, for reproducing its runs: whole sequence, whole vocabulary, batch 1."""

    def __init__(self, generator: torch.Generator | None, length: int, block_start: int) -> None:
        self.generator = generator
        self.length = length
        self.block_start = block_start

    def _block(self, width: int, draws: torch.Tensor) -> torch.Tensor:
        return draws[:, self.block_start : self.block_start + width]

    def tokens(self, rows: torch.Tensor, vocabulary: int) -> torch.Tensor:
        shape = (1, self.length, vocabulary)
        draws = torch.rand(shape, dtype=torch.float64, generator=self.generator, device=rows.device)
        return self._block(rows.shape[1], draws)[rows]

    def positions(self, rows: torch.Tensor) -> torch.Tensor:
        draws = torch.rand(1, self.length, generator=self.generator, device=rows.device)
        return self._block(rows.shape[1], draws)


def commits_per_step(masked: int, steps: int) -> list[int]:
    """Spread `masked` commits evenly over `steps`, the first ones taking one more where it does not divide."""
    share, extra = divmod(masked, steps)
    return [share + (step < extra) for step in range(steps)]


def predict(
    logits: torch.Tensor,
    rows: torch.Tensor,
    suppressed: torch.Tensor,
    temperature: float,
    remasking: str,
    draws: RandomDraws,
) -> Prediction:
    """Choose a candidate and a confidence for every masked position.

    Confidences are taken in float64: in float32 saturated probabilities tie at 1.0 and the ranking is lost.

    Args:
        logits: (rows that are true, vocabulary) of the masked positions.
        rows: (batch, block), which positions these are.
        suppressed: (tokens,), ids that may not be written.
        temperature: 0 for the likeliest token, above for Gumbel-max sampling.
        remasking: "low_confidence" or "random".
        draws: source of random numbers; not touched when nothing is random.

    Returns:
        Candidates and confidences as (batch, block); positions that are not masked hold token 0 and confidence 0.
    """
    logits = logits.index_fill(1, suppressed, -torch.inf)
    if temperature > 0:
        exact = logits.to(_widest(logits.device))
        noise = (-draws.tokens(rows, logits.shape[1]).to(exact.dtype).log()) ** temperature
        tokens = (exact.exp() / noise).argmax(dim=1)
    else:
        tokens = logits.argmax(dim=1)
    batch_tokens = torch.zeros(rows.shape, dtype=torch.long, device=rows.device)
    batch_tokens[rows] = tokens
    confidence = torch.zeros(rows.shape, dtype=_widest(rows.device), device=rows.device)
    if remasking == "random":
        confidence = draws.positions(rows).to(confidence.dtype)
    else:
        exact = logits.to(confidence.dtype)
        chosen = exact.gather(1, tokens[:, None])[:, 0]
        confidence[rows] = (chosen - exact.logsumexp(dim=1)).exp()
    return Prediction(batch_tokens, confidence)


def _widest(device: torch.device) -> torch.dtype:
    return torch.float32 if device.type == "mps" else torch.float64


def most_confident(confidence: torch.Tensor, competing: torch.Tensor, count: int) -> torch.Tensor:
    """Mark the `count` most confident competing positions of every row, or all where fewer compete.

    Args:
        confidence: (batch, block).
        competing: (batch, block), positions that may be committed.
        count: how many per row.

    Returns:
        (batch, block) boolean.
    """
    ranked = torch.where(competing, confidence, -torch.inf)
    best = ranked.topk(min(count, ranked.shape[1]), dim=1).indices
    return torch.zeros_like(competing).scatter(1, best, True) & competing


def leftmost_match(answer: torch.Tensor, stop: torch.Tensor) -> torch.Tensor:
    """Find the first occurrence of a token sequence in each answer.

    Args:
        answer: (batch, canvas) token ids.
        stop: (tokens,), at least one.

    Returns:
        (batch,) index of its first token; the canvas length where it does not occur.
    """
    batch, canvas = answer.shape
    if len(stop) > canvas:
        return torch.full((batch,), canvas, dtype=torch.long, device=answer.device)
    match = (answer.unfold(1, len(stop), 1) == stop).all(dim=2)  # (batch, canvas - len(stop) + 1)
    return torch.where(match.any(dim=1), match.int().argmax(dim=1), canvas)


def token_stop(answer: torch.Tensor, token_ids: torch.Tensor) -> torch.Tensor:
    """Where the leftmost of several single-token stops stands, (batch,); the canvas length where there is none."""
    match = torch.isin(answer, token_ids)
    return torch.where(match.any(dim=1), match.int().argmax(dim=1), answer.shape[1])


def sequence_stop(answer: torch.Tensor, stops: list[torch.Tensor], found: torch.Tensor) -> torch.Tensor:
    """Update where stop strings end each answer, by the official rule.

    The list is searched in order and the first sequence that occurs counts. Once one was found, only the first
    sequence of the list can still move the stop; parity with the official runs needs this.

    Args:
        answer: (batch, canvas) token ids.
        stops: stop sequences in the order given by the user, each (tokens,).
        found: (batch,) result of the previous step; the canvas length where nothing was found.

    Returns:
        (batch,) index of the stop, the canvas length where there is none.
    """
    canvas = answer.shape[1]
    for index, stop in enumerate(stops):
        match = leftmost_match(answer, stop)
        may_move = (found == canvas) | (index == 0)
        found = torch.where((match < canvas) & may_move, match, found)
    return found
