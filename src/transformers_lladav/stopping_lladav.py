"""Where an answer ends: stop tokens and strings, stable and confident canvases, stopping criteria of transformers."""

from typing import Any

import torch
from transformers.generation import MaxTimeCriteria
from transformers.generation.stopping_criteria import (
    ConfidenceCriteria,
    EosTokenCriteria,
    MaxLengthCriteria,
    StoppingCriteriaList,
    StopStringCriteria,
)

# Criteria that ask a question which has its own setting here, or which a denoising loop cannot answer.
REFUSED_CRITERIA = {
    MaxLengthCriteria: "give max_new_tokens",
    StopStringCriteria: "give stop_strings",
    EosTokenCriteria: "give eos_token_id",
    ConfidenceCriteria: "it belongs to assisted decoding; confidence_threshold ends a block early here",
}


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


class StableAndConfident:
    """Ends a block when what the model would write no longer changes and it is sure of it.

    The meaning of both numbers is that of transformers' DiffusionGemma: stable is a canvas of likeliest tokens that
    equals those of the last `stability_threshold` steps, confident a mean entropy below `confidence_threshold`. Here
    the mean goes over the positions that are still masked, since no others are predicted.

    Args:
        stability_threshold: how many steps; None does not ask for stability.
        confidence_threshold: in nats; None does not ask for confidence.
        batch: number of samples.
    """

    def __init__(self, stability_threshold: int | None, confidence_threshold: float | None, batch: int) -> None:
        self.stability_threshold, self.confidence_threshold = stability_threshold, confidence_threshold
        self.batch = batch

    def start_block(self, width: int, device: torch.device) -> None:
        """Forget the canvases of the block before.

        Args:
            width: of the block.
            device: where canvases are.
        """
        self.previous = torch.full((self.batch, width), -1, device=device)
        self.unchanged = torch.zeros(self.batch, dtype=torch.long, device=device)

    def __call__(
        self, samples: torch.Tensor, canvas: torch.Tensor, entropy: torch.Tensor | None, competing: torch.Tensor
    ) -> torch.Tensor:
        """Look at one step.

        Args:
            samples: (rows,), which samples of the batch these are.
            canvas: (rows, block), written tokens, and the likeliest ones where masked.
            entropy: (rows, block), of masked positions; needed with a confidence threshold.
            competing: (rows, block), which are masked.

        Returns:
            (rows,) boolean, whether the block may be completed now.

        Raises:
            ValueError: if the entropies are needed and missing.
        """
        done = torch.ones(len(samples), dtype=torch.bool, device=canvas.device)
        if self.stability_threshold is not None:
            same = (self.previous[samples] == canvas).all(dim=1)
            self.unchanged[samples] = torch.where(same, self.unchanged[samples] + 1, 0)
            self.previous[samples] = canvas
            done &= self.unchanged[samples] >= self.stability_threshold
        if self.confidence_threshold is not None:
            if entropy is None:
                raise ValueError(f"confidence_threshold={self.confidence_threshold} needs the entropies of the step")
            mean = (entropy * competing).sum(dim=1) / competing.sum(dim=1).clamp(min=1)
            done &= mean < self.confidence_threshold
        return done


def check_criteria(criteria: Any) -> list[Any]:
    """Accept stopping criteria of transformers that a denoising loop can ask.

    Args:
        criteria: a `StoppingCriteriaList`, a list, one criterion, or None.

    Returns:
        The criteria as a list.

    Raises:
        ValueError: for one that has its own setting or makes no sense here, with the reason.
        TypeError: for something that cannot be called.
    """
    if criteria is None:
        return []
    if not isinstance(criteria, list | tuple):
        criteria = [criteria]
    checked: list[Any] = []
    for item in criteria:
        checked += item if isinstance(item, StoppingCriteriaList) else [item]
    for item in checked:
        for refused, reason in REFUSED_CRITERIA.items():
            if isinstance(item, refused):
                raise ValueError(f"generate() does not take {type(item).__name__}: {reason}")
        if not callable(item):
            raise TypeError(f"stopping_criteria holds {item!r}; give stop texts or callables, not both in one list")
    return checked


def split_time(criteria: list[Any]) -> tuple[list[Any], list[Any]]:
    """Separate time limits, which are asked after every step, from the rest, which sees whole blocks."""
    timed = [item for item in criteria if isinstance(item, MaxTimeCriteria)]
    return timed, [item for item in criteria if item not in timed]
