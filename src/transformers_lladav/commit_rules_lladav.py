"""Which candidates of a step are written: the fixed schedule, a threshold, a factor, an entropy bound.

A rule sees an [`Offer`] and marks the positions to commit. All rules are small frozen dataclasses, can be passed to
`generate` as `sampler_config`, and are saved with their class name. Any object with the same `select` will do.
"""

from dataclasses import asdict, dataclass
from typing import Any, Protocol

import torch


@dataclass
class Offer:
    """What a rule decides on.

    Attributes:
        confidence: (rows, block) float64, how sure each candidate is, in the measure that `remasking` names.
        entropy: (rows, block) float64 in nats, of the distribution at each position; None unless the rule asks.
        competing: (rows, block), positions that may be written.
        planned: (rows,), how many the fixed schedule writes in this step.
        needed: (rows,), how many must be written so that the steps that are left suffice; at least 1.
    """

    confidence: torch.Tensor
    entropy: torch.Tensor | None
    competing: torch.Tensor
    planned: torch.Tensor
    needed: torch.Tensor


class CommitRule(Protocol):
    """The interface of a rule."""

    @property
    def remasking(self) -> tuple[str, ...]:
        """Measures of confidence that the rule makes sense with."""
        ...

    @property
    def needs_entropy(self) -> bool:
        """Whether the offer must hold entropies."""
        ...

    def select(self, offer: Offer) -> torch.Tensor:
        """Mark the positions to commit, (rows, block) boolean, a subset of the competing ones."""
        ...


def commits_per_step(masked: torch.Tensor, step: int | torch.Tensor, steps: torch.Tensor) -> torch.Tensor:
    """How many of `masked` positions an even schedule commits in a step, the first steps taking one more.

    Args:
        masked: (rows,), masks at the start of the block.
        step: index of the step in the block.
        steps: (rows,), steps of the block.

    Returns:
        (rows,) counts; over all steps they sum to `masked`.
    """
    return masked // steps + (step < masked % steps)


def most_confident(confidence: torch.Tensor, competing: torch.Tensor, count: torch.Tensor) -> torch.Tensor:
    """Mark the most confident competing positions of every row, or all where fewer compete.

    Args:
        confidence: (rows, block); of equal ones the leftmost comes first.
        competing: (rows, block), positions that may be marked.
        count: (rows,), how many.

    Returns:
        (rows, block) boolean.
    """
    return (_rank(confidence, competing) < count[:, None]) & competing


def _rank(confidence: torch.Tensor, competing: torch.Tensor) -> torch.Tensor:
    """Place of each position in its row, most confident first, competing ones before all others; (rows, block)."""
    ranked = torch.where(competing, confidence, -torch.inf)
    order = ranked.argsort(dim=1, descending=True, stable=True)
    places = torch.arange(order.shape[1], device=order.device).expand_as(order)
    return torch.empty_like(order).scatter(1, order, places)


class _SavedWithName:
    """Gives a rule the form it has in `generation_config.json`."""

    def to_dict(self) -> dict[str, Any]:
        """The settings and the class name, as transformers saves sampler configurations."""
        return {**asdict(self), "_cls_name": type(self).__name__}  # type: ignore[call-overload]


@dataclass(frozen=True)
class FixedSchedule(_SavedWithName):
    """Write as many positions per step as the steps ask for: the official loop (LLaDA, arXiv:2502.09992)."""

    remasking = ("low_confidence", "random", "margin", "entropy")
    needs_entropy = False

    def select(self, offer: Offer) -> torch.Tensor:
        """The `planned` most confident positions; see [`CommitRule`]."""
        return most_confident(offer.confidence, offer.competing, offer.planned)


@dataclass(frozen=True)
class ConfidenceThreshold(_SavedWithName):
    """Write every position whose confidence reaches a threshold (Fast-dLLM, arXiv:2505.22618).

    Args:
        threshold: between 0 and 1; at least the `needed` most confident positions are written in any case.

    Raises:
        ValueError: if the threshold is not in 0..1.
    """

    threshold: float

    remasking = ("low_confidence", "margin")
    needs_entropy = False

    def __post_init__(self) -> None:
        _check_number("threshold", self.threshold, 0.0, 1.0)

    def select(self, offer: Offer) -> torch.Tensor:
        """Positions at or above the threshold; see [`CommitRule`]."""
        sure = (offer.confidence >= self.threshold) & offer.competing
        return sure | most_confident(offer.confidence, offer.competing, offer.needed)


@dataclass(frozen=True)
class ConfidenceFactor(_SavedWithName):
    """Write the n most confident positions, n the largest with (n + 1)(1 - p_n) < factor (Fast-dLLM).

    p_n is the n-th highest probability: the more positions are written at once, the surer each must be.

    Args:
        factor: above 0; larger writes more.

    Raises:
        ValueError: if the factor is not above 0.
    """

    factor: float

    remasking = ("low_confidence",)
    needs_entropy = False

    def __post_init__(self) -> None:
        _check_number("factor", self.factor, 0.0)

    def select(self, offer: Offer) -> torch.Tensor:
        """The n most confident positions; see [`CommitRule`]."""
        rank = _rank(offer.confidence, offer.competing)
        fits = ((rank + 2) * (1 - offer.confidence) < self.factor) & offer.competing
        count = torch.where(fits, rank + 1, 0).amax(dim=1)
        return most_confident(offer.confidence, offer.competing, torch.maximum(count, offer.needed))


@dataclass(frozen=True)
class EntropyBound(_SavedWithName):
    """Write positions of the lowest entropies while their sum without the largest stays within a bound.

    The sum bounds what the positions written together could still have told about each other (arXiv:2505.24857).

    Args:
        entropy_bound: in nats, above 0; larger writes more.

    Raises:
        ValueError: if the bound is not above 0.
    """

    entropy_bound: float

    remasking = ("low_confidence",)
    needs_entropy = True

    def __post_init__(self) -> None:
        _check_number("entropy_bound", self.entropy_bound, 0.0)

    def select(self, offer: Offer) -> torch.Tensor:
        """The positions that are nearly independent; see [`CommitRule`]."""
        if offer.entropy is None:
            raise ValueError("an entropy bound needs the entropies of the offer")
        rank = _rank(-offer.entropy, offer.competing)
        ascending = torch.zeros_like(offer.entropy).scatter(1, rank, offer.entropy)
        # Sorted, the sum without the largest is the sum of those before; positions that do not compete come last.
        smaller = ascending.cumsum(dim=1) - ascending
        count = (smaller <= self.entropy_bound).sum(dim=1)
        return most_confident(-offer.entropy, offer.competing, torch.maximum(count, offer.needed))


RULES = {rule.__name__: rule for rule in (FixedSchedule, ConfidenceThreshold, ConfidenceFactor, EntropyBound)}


def load_rule(saved: dict[str, Any]) -> Any:
    """Build a rule from the form it is saved in.

    Args:
        saved: settings with the class name under `_cls_name`.

    Returns:
        The rule.

    Raises:
        ValueError: for a class that is no rule of this module, or settings that it does not have.
    """
    settings = dict(saved)
    name = settings.pop("_cls_name", None)
    if not isinstance(name, str) or name not in RULES:
        raise ValueError(f"sampler_config has _cls_name={name!r}; choose one of {', '.join(RULES)}")
    try:
        return RULES[name](**settings)
    except TypeError as error:
        raise ValueError(f"sampler_config={saved} does not fit: {error}") from error


def _check_number(name: str, value: Any, lowest: float, highest: float | None = None) -> None:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if highest is None:
        if not number or not value > lowest:
            raise ValueError(f"{name}={value!r} must be a number above {lowest:g}")
    elif not number or not lowest <= value <= highest:
        raise ValueError(f"{name}={value!r} must be a number from {lowest:g} to {highest:g}")
