"""What the model would write: a candidate per masked position, how sure it is, and where randomness comes from.

Follows LLaDA's sampling (arXiv:2502.09992, section 2.4 and algorithms 4 and 5) as LLaDA-V uses it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from transformers.generation import TopKLogitsWarper, TopPLogitsWarper

REMASKING = ("low_confidence", "random", "margin", "entropy")


@dataclass(frozen=True)
class SamplingSettings:
    """How candidates are chosen and rated.

    Attributes:
        temperature: 0 for the likeliest token, above for Gumbel-max sampling.
        top_k: sample among the likeliest so many tokens only.
        top_p: sample among the fewest tokens whose probabilities reach this sum only.
        remasking: the measure of confidence: "low_confidence" is the candidate's probability, "margin" the gap
            between the two highest, "entropy" minus the entropy, "random" a uniform number.
        needs_entropy: whether to work out entropies.
    """

    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None
    remasking: str = "low_confidence"
    needs_entropy: bool = False


@dataclass
class Prediction:
    """What the model would write at each position of the live block; only masked positions are meaningful.

    Attributes:
        tokens: (rows, block), the candidate per position.
        likeliest: (rows, block), the candidate if nothing were sampled.
        confidence: (rows, block), float64 where the device has it, how sure it is.
        entropy: (rows, block), in nats and the same type, of the distribution that is sampled from; None unless
            asked for.
    """

    tokens: torch.Tensor
    likeliest: torch.Tensor
    confidence: torch.Tensor
    entropy: torch.Tensor | None = None


class RandomDraws(Protocol):
    """Source of the uniform numbers of one step. Asked once per step, tokens before positions."""

    def tokens(self, rows: torch.Tensor, vocabulary: int) -> torch.Tensor:
        """(rows that are true, vocabulary) uniforms for sampling candidates.

        They are float64, on the CPU where the device of the rows has no such numbers.
        """
        ...

    def positions(self, rows: torch.Tensor) -> torch.Tensor:
        """(batch, block) uniforms for choosing among the true positions at random."""
        ...


class SampleDraws:
    """Draws from one generator per sample, so that no sample depends on its neighbours in the batch."""

    def __init__(self, generators: list[torch.Generator]) -> None:
        self.generators = generators

    def tokens(self, rows: torch.Tensor, vocabulary: int) -> torch.Tensor:
        """(rows that are true, vocabulary) float64 uniforms, those of a sample from its own generator."""
        draws = [
            torch.rand(int(row.sum()), vocabulary, **_widest_from(generator.device), generator=generator)
            for row, generator in zip(rows, self.generators, strict=True)
        ]
        drawn = torch.cat(draws)
        return drawn.to(rows.device) if drawn.dtype == widest_float(rows.device) else drawn

    def positions(self, rows: torch.Tensor) -> torch.Tensor:
        """(batch, block) uniforms at true positions, those of a sample from its own generator; 0 elsewhere."""
        draws = [
            torch.rand(int(row.sum()), generator=generator, device=generator.device)
            for row, generator in zip(rows, self.generators, strict=True)
        ]
        return torch.zeros(rows.shape, device=rows.device).masked_scatter(rows, torch.cat(draws).to(rows.device))


class OfficialDraws:
    """The official implementation's draws, for reproducing its runs: whole sequence, whole vocabulary, batch 1."""

    def __init__(self, generator: torch.Generator | None, length: int, block_start: int) -> None:
        self.generator = generator
        self.length = length
        self.block_start = block_start

    def _block(self, width: int, draws: torch.Tensor) -> torch.Tensor:
        return draws[:, self.block_start : self.block_start + width]

    def tokens(self, rows: torch.Tensor, vocabulary: int) -> torch.Tensor:
        """(rows that are true, vocabulary) float64 uniforms, out of a draw for the whole sequence."""
        shape = (1, self.length, vocabulary)
        device = rows.device if widest_float(rows.device) == torch.float64 else torch.device("cpu")
        draws = torch.rand(shape, dtype=torch.float64, generator=self.generator, device=device)
        return self._block(rows.shape[1], draws)[rows.to(device)]

    def positions(self, rows: torch.Tensor) -> torch.Tensor:
        """(1, block) uniforms, out of a draw for the whole sequence."""
        draws = torch.rand(1, self.length, generator=self.generator, device=rows.device)
        return self._block(rows.shape[1], draws)


def sample_generators(
    generator: torch.Generator | Sequence[torch.Generator] | None, batch: int, device: torch.device
) -> list[torch.Generator]:
    """One generator per sample: as given, or seeded in order from the one given or the global one.

    Args:
        generator: None, one, or one per sample.
        batch: how many samples.
        device: where new generators draw; on the CPU, if it has no float64.

    Returns:
        One generator per sample.

    Raises:
        TypeError: if it is none of them.
        ValueError: if there are more or fewer than samples.
    """
    if isinstance(generator, list | tuple):
        if len(generator) != batch:
            raise ValueError(f"generator has {len(generator)} entries for a batch of {batch}; pass one per sample")
        return list(generator)
    if not isinstance(generator, torch.Generator | None):
        kind = type(generator).__name__
        raise TypeError(f"generator is a {kind}; pass a torch.Generator, or a list of one per sample")
    where = "cpu" if generator is None else generator.device
    seeds = torch.randint(2**63 - 1, (batch,), generator=generator, device=where).tolist()
    device = device if widest_float(device) == torch.float64 else torch.device("cpu")
    return [torch.Generator(device).manual_seed(seed) for seed in seeds]


def predict(logits: torch.Tensor, rows: torch.Tensor, settings: SamplingSettings, draws: RandomDraws) -> Prediction:
    """Choose a candidate and a confidence for every masked position.

    Confidences are those of the distribution without temperature and noise, taken in float64: in float32 saturated
    probabilities tie at 1.0 and the ranking is lost. Entropies are taken after division by the temperature.

    A device without float64 (MPS) gets float32 instead: of positions that are so sure that their probability is 1
    there, which is above 1 - 2^-25, the leftmost counts as the surest, so that the order in which tokens are written
    can differ from other devices'. Noise is drawn and taken to logarithms on the CPU in float64 all the same, since
    float32 uniforms would never draw what is rarer than 2^-24; generators of such a device draw what they can.

    Args:
        logits: (rows that are true, vocabulary) of the masked positions, or (batch * block, vocabulary) of all, if
            nothing is random: shapes then depend on no values; -inf where a token may not be written.
        rows: (batch, block), which positions are masked.
        settings: how to choose and rate.
        draws: source of random numbers; not touched when nothing is random.

    Returns:
        Candidates and confidences; positions that are not masked hold token 0 and confidence 0.
    """
    exact = logits.to(widest_float(logits.device))  # (positions, vocabulary)
    likeliest = logits.argmax(dim=1)
    tokens = likeliest
    if settings.temperature > 0:
        # Rounded to float32 before, a uniform number could be 1, whose noise is infinite.
        noise = (-draws.tokens(rows, logits.shape[1]).log()).log().to(exact.dtype).to(exact.device)
        # The logarithm of the official exp(logit) / (-ln u)^T, whose parts can leave the range of numbers.
        tokens = (_truncated(exact, settings) - settings.temperature * noise).argmax(dim=1)
    if settings.remasking == "random":
        confidence = draws.positions(rows).to(exact.dtype)
    else:
        confidence = _spread(_confidence(exact, tokens, settings.remasking), rows)
    entropy = None
    if settings.needs_entropy:
        entropy = _spread(_entropy(exact / settings.temperature if settings.temperature > 0 else exact), rows)
    return Prediction(_spread(tokens, rows), _spread(likeliest, rows), confidence, entropy)


def _confidence(exact: torch.Tensor, tokens: torch.Tensor, measure: str) -> torch.Tensor:
    """How sure the candidates are in a measure of `REMASKING` but "random", (positions,)."""
    if measure == "entropy":
        return -_entropy(exact)
    exact = exact - exact.amax(dim=1, keepdim=True)  # or large logits leave no digits for the sum's logarithm
    total = exact.logsumexp(dim=1)
    if measure == "margin":
        highest = (exact.topk(2, dim=1).values - total[:, None]).exp()  # (positions, 2)
        return highest[:, 0] - highest[:, 1]
    return (exact.gather(1, tokens[:, None])[:, 0] - total).exp()


def _entropy(exact: torch.Tensor) -> torch.Tensor:
    return torch.special.entr(exact.softmax(dim=1)).sum(dim=1)


def _truncated(exact: torch.Tensor, settings: SamplingSettings) -> torch.Tensor:
    """Logits with -inf at tokens that `top_k` and `top_p` leave out, in transformers' order and meaning."""
    scaled = exact / settings.temperature
    if settings.top_k is not None:
        scaled = TopKLogitsWarper(settings.top_k)(None, scaled)
    if settings.top_p is not None:
        scaled = TopPLogitsWarper(settings.top_p)(None, scaled)
    return exact.masked_fill(scaled == -torch.inf, -torch.inf)


def _spread(values: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """Put values of the true positions, or of all, in their places, 0 elsewhere, (batch, block)."""
    if len(values) == rows.numel():
        return torch.where(rows, values.view(rows.shape), 0)
    placed = torch.zeros(rows.shape, dtype=values.dtype, device=rows.device)
    placed[rows] = values
    return placed


def widest_float(device: torch.device) -> torch.dtype:
    """Float64 where the device has it."""
    return torch.float32 if device.type == "mps" else torch.float64


def _widest_from(device: torch.device) -> dict[str, Any]:
    """Device and type of what a generator of a device draws."""
    return {"device": device, "dtype": widest_float(device)}
