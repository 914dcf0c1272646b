"""Masked diffusion against its autoregressive twin: one architecture and the same tokens to learn, two objectives.

LLaDA-V, arXiv:2505.16933, section 4.2, compares itself with LLaMA3-V, which differs in its language model and was
trained with the same recipe. Here the two differ in nothing but what they were trained for:

    diffusion         sees everything, and learns the answers' tokens that are hidden
    autoregressive    sees what stands before, and learns from each position the token that comes next

A batch is of `Row`s of a `Collator` with `packing=True`, whose masks say which position sees which.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import count, islice
from typing import Any, Literal

import torch
from transformers import get_cosine_schedule_with_warmup
from transformers.modeling_outputs import BaseModelOutput

from .batches import TrainingBatches
from .collation import Collator
from .diffusion_lladav import IGNORE_INDEX
from .modeling_text_lladav import positions_from_mask
from .recipes import Part
from .rows import Row
from .samples import Numbered
from .trainable import PART_PREFIXES

Twin = Literal["diffusion", "autoregressive"]


# What the twins learn


def causal_mask(mask: torch.Tensor) -> torch.Tensor:
    """Take from a mask that a position sees later ones.

    Args:
        mask: (rows, 1, length, length) or (length, length), True where a query (third axis) sees a key (fourth).

    Returns:
        A mask of the same shape.

    Raises:
        ValueError: if it is not a mask of queries times keys.
    """
    if mask.ndim < 2 or mask.dtype != torch.bool or mask.shape[-1] != mask.shape[-2]:
        raise ValueError(
            f"the mask is {mask.dtype} of shape {tuple(mask.shape)}, not a boolean one of queries times keys; make "
            "the batch with Collator(packing=True)"
        )
    return mask & torch.ones_like(mask).tril()


def next_token_row(row: Row) -> Row:
    """Let every position of a clean row learn the token that comes next, where that one is learned.

    Args:
        row: clean; its labels are what a diffusion model may have to fill in.

    Returns:
        The row with labels and weights one position earlier. The weights are in the proportions of `worth` and sum
        to 1: what a token counts on average over the noise of masked diffusion.
    """
    labels = torch.full_like(row.labels, IGNORE_INDEX)
    labels[:-1] = row.labels[1:]
    worth = torch.zeros_like(row.worth)
    worth[:-1] = row.worth[1:]
    worth[labels == IGNORE_INDEX] = 0
    return replace(row, labels=labels, loss_weights=worth / worth.sum().clamp(min=1e-9))


def twin_batch(collator: Collator, rows: Sequence[Row], twin: Twin) -> dict[str, torch.Tensor]:
    """Make a batch of clean rows for one of the twins; both learn the same tokens of it.

    Args:
        collator: with `packing=True`; the noise is its own.
        rows: clean.
        twin: which.

    Returns:
        What the model's forward takes; its `loss` is then the twin's.
    """
    if twin == "diffusion":
        return collator.assemble([view for row in rows for view in collator.add_noise(row, collator.noise_of(row))])
    batch = collator.assemble([next_token_row(row) for row in rows])
    return {**batch, "attention_mask": causal_mask(batch["attention_mask"])}


# How the twins learn


@dataclass(frozen=True)
class Lesson:
    """How a twin is trained; the same for both.

    Attributes:
        steps: optimiser steps.
        batch_size: samples of a step.
        learning_rate: at its highest; it rises over `warmup` and falls with a cosine to 0.
        trains: parts of the model, as in a recipe.
        warmup: share of the steps.
        weight_decay: of AdamW.
        largest_gradient: norm that gradients are cut to.
    """

    steps: int
    batch_size: int
    learning_rate: float
    trains: tuple[Part, ...] = ("projector", "newline", "language_model", "head")
    warmup: float = 0.05
    weight_decay: float = 0.01
    largest_gradient: float = 1.0


def rows_in_order(rows: Sequence[Row], batch_size: int, seed: int) -> Iterator[list[Row]]:
    """Go through rows again and again, each time in another order that depends on the seed only.

    Args:
        rows: clean.
        batch_size: of them at a time.
        seed: of the order.

    Yields:
        Batches of rows that know their epoch and number, from which their noise is drawn.
    """
    data = Numbered(rows)
    batches = TrainingBatches(data, batch_size, batch_size, seed)
    for epoch in count():
        batches.set_epoch(epoch)
        for numbers in batches:
            yield [replace(rows[number], number=(epoch, number)) for number in numbers]


def fit(
    model: Any,
    collator: Collator,
    rows: Sequence[Row],
    twin: Twin,
    lesson: Lesson,
    on_step: Callable[[int, float], None] | None = None,
) -> list[float]:
    """Train a twin.

    Args:
        model: is changed.
        collator: gives seed and noise.
        rows: clean; what they are filled up with is of the collator that made them.
        twin: which.
        lesson: how.
        on_step: is told the step, from 1, and its loss.

    Returns:
        The loss of each step.

    Raises:
        ValueError: if a loss is not finite.
    """
    prefixes = tuple(PART_PREFIXES[part] for part in lesson.trains)
    for name, weight in model.named_parameters():
        weight.requires_grad_(name.startswith(prefixes))
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    optimiser = torch.optim.AdamW(weights, lesson.learning_rate, weight_decay=lesson.weight_decay)
    schedule = get_cosine_schedule_with_warmup(optimiser, int(lesson.warmup * lesson.steps), lesson.steps)
    losses: list[float] = []
    for batch in islice(rows_in_order(rows, lesson.batch_size, collator.seed), lesson.steps):
        loss = model(**twin_batch(collator, batch, twin)).loss
        losses.append(loss.item())
        if not math.isfinite(losses[-1]):
            raise ValueError(
                f"the loss is {losses[-1]} at step {len(losses)}; lower learning_rate={lesson.learning_rate}"
            )
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, lesson.largest_gradient)
        optimiser.step()
        optimiser.zero_grad()
        schedule.step()
        if on_step is not None:
            on_step(len(losses), losses[-1])
    return losses


# Pictures that were seen before


class KeptFeatures(torch.nn.Module):
    """Stands in for a frozen vision tower: its "pixels" are what the tower once said about them.

    Args:
        dtype: of the features, as the model asks its tower for it.
    """

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.dtype = dtype

    def embeddings(self, features: torch.Tensor) -> torch.Tensor:
        """The features as they are, (tiles, patches, vision hidden)."""
        return features

    def encoder(self, inputs_embeds: torch.Tensor) -> BaseModelOutput:
        """The features as a tower hands them over."""
        return BaseModelOutput(last_hidden_state=inputs_embeds)


# How the twins answer


@torch.no_grad()
def write_greedily(
    model: Any,
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor | None = None,
    max_new_tokens: int = 32,
    **pictures: torch.Tensor,
) -> list[list[int]]:
    """Answer a batch of prompts with the autoregressive twin, the likeliest token each time.

    A pass over the whole sequence per token. What `generate` never writes, this does not write either.

    Args:
        model: an autoregressive twin.
        input_ids: (batch, prompt), padded on either side.
        attention_mask: (batch, prompt), 0 at padding; all ones by default.
        max_new_tokens: of an answer, its end included.
        **pictures: the processor's picture inputs.

    Returns:
        The tokens of each answer, the one that ended it included: as many as there were forward passes for it.

    Raises:
        ValueError: if no token could be written.
    """
    if max_new_tokens < 1:
        raise ValueError(f"max_new_tokens={max_new_tokens}; an answer has at least its end: pass 1 or more")
    mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
    ends = input_ids.new_tensor(model.generation_config.stop_token_ids)
    config, embed = model.config, model.get_input_embeddings()
    never = {*config.suppressed_token_ids, config.mask_token_id} & set(range(config.output_vocab_size))
    unwritable = input_ids.new_tensor(sorted(never))
    embeds, _, _ = model.model.embed_inputs(input_ids, **pictures)
    active = list(range(len(input_ids)))
    answers: list[list[int]] = [[] for _ in active]
    for _ in range(max_new_tokens):
        tokens = next_token_logits(model, embeds, mask).index_fill(1, unwritable, -torch.inf).argmax(dim=1)
        for row, token in zip(active, tokens.tolist(), strict=True):
            answers[row].append(token)
        goes_on = ~torch.isin(tokens, ends)
        active = [row for row, more in zip(active, goes_on.tolist(), strict=True) if more]
        if not active:
            break
        embeds = torch.cat([embeds[goes_on], embed(tokens[goes_on])[:, None]], dim=1)
        mask = torch.cat([mask[goes_on], mask.new_ones(len(active), 1)], dim=1)
    return answers


def next_token_logits(model: Any, embeds: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """What the autoregressive twin thinks comes after each sequence.

    Args:
        model: an autoregressive twin.
        embeds: (batch, length, hidden), pictures in place.
        mask: (batch, length), 0 at padding, wherever it stands.

    Returns:
        (batch, output vocabulary) logits.
    """
    hidden = model.model(
        inputs_embeds=embeds, attention_mask=unpadded_causal_mask(mask), position_ids=positions_from_mask(mask)
    ).last_hidden_state
    last = (mask * torch.arange(mask.shape[1], device=mask.device)).argmax(dim=1)
    ending = hidden[torch.arange(len(hidden), device=mask.device), last]  # (batch, hidden)
    return model.lm_head(ending)[:, : model.config.output_vocab_size]


def unpadded_causal_mask(mask: torch.Tensor) -> torch.Tensor:
    """Let every position see the tokens before it and itself, but no padding.

    Args:
        mask: (batch, length), 0 at padding.

    Returns:
        (batch, 1, length, length), True where a query (third axis) sees a key (fourth). Padding sees itself, so that
        no row of the attention is empty.
    """
    length = mask.shape[1]
    itself = torch.eye(length, dtype=torch.bool, device=mask.device)
    return causal_mask((mask.bool()[:, None, None, :] | itself).expand(-1, 1, length, length))


@contextmanager
def without_later_turns(model: Any, turns: torch.Tensor) -> Iterator[None]:
    """Let `generate` answer one prompt with the conversation mask, which it does not take itself.

    Args:
        model: a diffusion twin.
        turns: (prompt,), the turn of each position, from `labels.conversation_ids`. Everything behind the prompt is
            of the last one.

    Yields:
        Nothing; within, no position of the prompt sees a later turn.

    Raises:
        ValueError: within, for a batch of several prompts.
    """

    def add_turns(module: torch.nn.Module, args: Any, given: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        batch, length = given["inputs_embeds"].shape[:2]
        if batch != 1:
            raise ValueError(f"{batch} prompts were given, but the turns are of one; pass them one by one")
        behind = turns[-1:].expand(length - len(turns))
        return args, {**given, "conversation_ids": torch.cat([turns, behind])[None]}

    hook = model.model.register_forward_pre_hook(add_turns, with_kwargs=True)
    try:
        yield
    finally:
        hook.remove()
