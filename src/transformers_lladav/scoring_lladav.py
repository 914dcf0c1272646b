"""How likely an answer is: the conditional log-likelihood of masked diffusion, for ranking choices.

LLaDA, arXiv:2502.09992, equation 6 and algorithm 3. For an answer r of L tokens after a prompt p,

    log p(r | p) >= E[ L / l * sum over the hidden i of log p(r_i | p, r_l) ],

where l is uniform over 1..L and r_l is r with l tokens, any l of them, hidden by masks. Unlike upstream, which draws
a random mask for every pass, the numbers l share the passes evenly, no mask is used twice, and an answer with few
enough masks is worked out exactly.
"""

import difflib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence
from transformers.modeling_outputs import ModelOutput

from .canvas_lladav import is_whole
from .generation_lladav import PICTURE_INPUTS, TOLERATED_INPUTS
from .sampling_lladav import widest_float

# The head and float64 see so many positions at once: 0.25 GB at LLaDA's vocabulary.
HEAD_POSITIONS = 128

Answers = Sequence[str | Sequence[int] | torch.Tensor]


@dataclass
class LladaVScoringOutput(ModelOutput):
    """Output of [`LladaVScoringMixin.score`]; all on the CPU, (answers,) each.

    Attributes:
        log_likelihoods: float64, natural logarithms: a lower bound on log p(answer | prompt), or an estimate of it.
        log_likelihoods_per_token: float64, the same over the number of tokens.
        standard_errors: float64, of `log_likelihoods`; 0 where exact, nan where one pass tells nothing of it.
        exact: boolean, whether every mask of the answer was used, so that the bound is exact.
        num_tokens: tokens of each answer, the end token included if it was appended.
        num_forwards: passes of each answer through the model, twice as many with guidance.
    """

    log_likelihoods: torch.Tensor
    log_likelihoods_per_token: torch.Tensor | None = None
    standard_errors: torch.Tensor | None = None
    exact: torch.Tensor | None = None
    num_tokens: torch.Tensor | None = None
    num_forwards: torch.Tensor | None = None

    @property
    def best(self) -> int:
        """Index of the likeliest answer; the first of equals."""
        return int(self.log_likelihoods.argmax())


@dataclass
class AnswerMasks:
    """The masks that an answer is seen through, one per pass.

    Attributes:
        hidden: (passes, length) boolean, no two rows alike.
        weights: (passes,), float64, what each counts in the mean; 1 together.
        unseen: (passes,), float64, share of the masks with as many hidden tokens that is not among the passes.
    """

    hidden: torch.Tensor
    weights: torch.Tensor
    unseen: torch.Tensor

    @property
    def exact(self) -> bool:
        """Whether these are all masks of the answer."""
        return not bool(self.unseen.any())

    def standard_error(self, values: torch.Tensor) -> float:
        """The standard error of the weighted mean of one value per pass.

        The spread around each pass is taken from its neighbours, which hide as many tokens or nearly so; what differs
        between few and many hidden tokens is no error here, as every number gets its share. With fewer passes than
        tokens the neighbours lie further apart, and the result is too large rather than too small.

        Args:
            values: (passes,), float64, in the order of the masks.

        Returns:
            0 for all masks, nan for one of several.
        """
        if self.exact:
            return 0.0
        if len(values) == 1:
            return math.nan
        halves = values.diff().square() / 2  # (passes - 1,), each an estimate of the variance of one value
        variances = (torch.cat([halves[:1], halves]) + torch.cat([halves, halves[-1:]])) / 2  # (passes,)
        return float((self.weights.square() * self.unseen * variances).sum().sqrt())


def draw_masks(length: int, num_samples: int, seed: int = 0) -> AnswerMasks:
    """Choose at most `num_samples` different masks for an answer, each number of hidden tokens equally heavy.

    Args:
        length: tokens of the answer.
        num_samples: passes that may be spent. All 2^length - 1 masks are taken if they are no more than that.
        seed: decides which masks are taken of those numbers of hidden tokens that have more than their share.

    Returns:
        The masks, from few hidden tokens to many.
    """
    generator = torch.Generator().manual_seed(seed)
    shares = _shares(length, num_samples, generator)
    counted = sum(share > 0 for share in shares)
    hidden, weights, unseen = [], [], []
    for count, share in enumerate(shares, start=1):
        chosen: dict[tuple[int, ...], None] = {}
        while len(chosen) < share:
            places = torch.randperm(length, generator=generator)[:count]
            chosen[tuple(sorted(places.tolist()))] = None
        for mask in chosen:
            hidden.append(torch.zeros(length, dtype=torch.bool).index_fill_(0, torch.tensor(mask), True))
            weights.append(1 / (counted * share))
            unseen.append(1 - share / math.comb(length, count) if counted == length else 1.0)
    return AnswerMasks(
        hidden=torch.stack(hidden),
        weights=torch.tensor(weights, dtype=torch.float64),
        unseen=torch.tensor(unseen, dtype=torch.float64),
    )


def _shares(length: int, num_samples: int, generator: torch.Generator) -> list[int]:
    """How many masks to take with 1, 2, ..., `length` hidden tokens; what some have no masks for goes to others."""
    if num_samples < length:
        # Too few for all: evenly spaced numbers from a random start, so that each is as likely as any other.
        start = float(torch.rand((), generator=generator))
        taken = {int((index + start) * length / num_samples) for index in range(num_samples)}
        return [int(index in taken) for index in range(length)]
    available = [math.comb(length, count) for count in range(1, length + 1)]
    shares = [0] * length
    for served, index in enumerate(sorted(range(length), key=available.__getitem__)):
        shares[index] = min(available[index], num_samples // (length - served))
        num_samples -= shares[index]
    return shares


class LladaVScoringMixin:
    """Gives a model `score()`."""

    @torch.no_grad()
    def score(
        self,
        input_ids: torch.Tensor,
        answers: Answers,
        *,
        attention_mask: torch.Tensor | None = None,
        tokenizer: Any = None,
        num_samples: int = 128,
        batch_size: int = 16,
        append_eos: bool = True,
        seed: int = 0,
        guidance_scale: float = 1.0,
        **pictures: Any,
    ) -> LladaVScoringOutput:
        """Estimate log p(answer | prompt) for each of several answers to one prompt (LLaDA, arXiv:2502.09992, eq. 6).

        Rank complete answers by `log_likelihoods` (`.best`): with the end token they exclude each other, so their
        probabilities compare at any length. `log_likelihoods_per_token` is for choices whose lengths differ for
        reasons that should not count, long paraphrases against short ones. Compare no values with the end token
        against values without, and no differences smaller than their `standard_errors`. The values are lower bounds,
        tight for one token; what a bound lacks grows with the length, to the disadvantage of long answers.

        An answer's value depends on its tokens, the prompt, `num_samples` and `seed` alone, and not on the answers
        beside it: every answer draws from its own generator, all with the same seed, so that answers of one length
        are seen through the same masks and differences between them are sharper than the values.

        Args:
            input_ids: (1, prompt) from the processor, with the generation prompt.
            answers: texts, lists of token ids or (tokens,) tensors. A text is tokenised as it stands.
            attention_mask: (1, prompt), 0 at padding, which is left out; all ones by default.
            tokenizer: needed for texts.
            num_samples: passes per answer at most. Answers of L tokens with 2^L - 1 <= `num_samples` masks use each
                once and are exact: up to 7 tokens at the default, the end token included.
            batch_size: passes run together, of any answers; twice as many rows with guidance.
            append_eos: let every answer end with the model's end-of-turn token, as answers in a chat do, unless it
                does already. Without, what is scored is a text whose length is known beforehand.
            seed: decides the masks.
            guidance_scale: as in `generate`: 1 is off; above, the prompt counts more than its absence.
            **pictures: the processor's picture and video inputs.

        Returns:
            The scores in the order of the answers.

        Raises:
            TypeError: for an unknown argument.
            ValueError: for values that break a rule; the message gives value, rule and fix.
        """
        _check_settings(num_samples, batch_size, seed, guidance_scale)
        _check_inputs(input_ids, attention_mask, pictures)
        answer_ids = _answer_ids(self, answers, tokenizer, append_eos)
        present = torch.ones_like(input_ids[0]).bool() if attention_mask is None else attention_mask[0].bool()
        _check_positions(self, int(present.sum()), max(map(len, answer_ids)))
        given = {name: value for name, value in pictures.items() if name in PICTURE_INPUTS}
        prompt = _embed_prompt(self, input_ids, present, given)
        masks = [draw_masks(len(ids), num_samples, seed) for ids in answer_ids]
        values = _pass_values(self, prompt, answer_ids, masks, batch_size, guidance_scale)
        totals = torch.stack([mask.weights @ value for mask, value in zip(masks, values, strict=True)])
        lengths = torch.tensor([len(ids) for ids in answer_ids])
        errors = [mask.standard_error(value) for mask, value in zip(masks, values, strict=True)]
        passes = torch.tensor([len(value) for value in values])
        return LladaVScoringOutput(
            log_likelihoods=totals,
            log_likelihoods_per_token=totals / lengths,
            standard_errors=torch.tensor(errors, dtype=torch.float64),
            exact=torch.tensor([mask.exact for mask in masks]),
            num_tokens=lengths,
            num_forwards=passes if guidance_scale == 1 else 2 * passes,
        )


def _check_settings(num_samples: int, batch_size: int, seed: int, guidance_scale: float) -> None:
    for name, value in (("num_samples", num_samples), ("batch_size", batch_size)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"{name}={value!r} must be a whole number of at least 1")
    if isinstance(seed, bool) or not isinstance(seed, int) or not -(2**63) <= seed < 2**64:
        raise ValueError(f"seed={seed!r} must be a whole number from {-(2**63)} to {2**64 - 1}")
    if isinstance(guidance_scale, bool) or not isinstance(guidance_scale, int | float) or not guidance_scale >= 0:
        raise ValueError(f"guidance_scale={guidance_scale!r} must be a number of at least 0; 1 is off")
    if guidance_scale == math.inf:
        raise ValueError(f"guidance_scale={guidance_scale!r} must be finite")


def _check_inputs(input_ids: torch.Tensor, attention_mask: torch.Tensor | None, pictures: dict[str, Any]) -> None:
    """Refuse unknown names, more prompts than one, and a mask of another shape."""
    settings = ("attention_mask", "tokenizer", "num_samples", "batch_size", "append_eos", "seed", "guidance_scale")
    for name in pictures:
        if name in (*PICTURE_INPUTS, *TOLERATED_INPUTS, "use_cache"):
            continue
        if name == "generator":
            raise TypeError("score() does not take 'generator': pass seed, from which every answer draws its masks")
        close = difflib.get_close_matches(name, [*settings, *PICTURE_INPUTS], n=1)
        raise TypeError(f"score() does not take {name!r}" + (f"; did you mean {close[0]!r}?" if close else ""))
    if not isinstance(input_ids, torch.Tensor) or input_ids.ndim != 2:
        raise ValueError("input_ids must be given as (1, prompt); use the processor's output")
    if len(input_ids) != 1:
        raise ValueError(f"input_ids hold {len(input_ids)} prompts; score one prompt at a time, with all its answers")
    if attention_mask is not None and attention_mask.shape != input_ids.shape:
        raise ValueError(
            f"attention_mask has shape {tuple(attention_mask.shape)} and input_ids {tuple(input_ids.shape)}; "
            "they must agree"
        )


def _check_positions(model: Any, prompt: int, answer: int) -> None:
    limit = model.config.text_config.max_position_embeddings
    if prompt + answer > limit:
        raise ValueError(
            f"the prompt has {prompt} tokens and the longest answer {answer}, but the model has {limit} positions; "
            "shorten the prompt, use fewer pictures, or shorten the answer"
        )


def _answer_ids(model: Any, answers: Answers, tokenizer: Any, append_eos: bool) -> list[torch.Tensor]:
    """The tokens that are scored, (tokens,) int64 on the CPU per answer."""
    if isinstance(answers, str):
        raise ValueError(f"answers={answers!r} is one text; pass a list of answers")
    if len(answers) == 0:
        raise ValueError("answers is empty; pass at least one answer")
    end = model.config.text_config.eos_token_id
    end = end[0] if isinstance(end, list) else end
    if append_eos and end is None:
        raise ValueError("append_eos=True, but the model has no text_config.eos_token_id; pass append_eos=False")
    prepared = []
    for index, answer in enumerate(answers):
        ids = _token_ids(f"answers[{index}]", answer, tokenizer)
        _check_tokens(f"answers[{index}]", ids, model.config)
        if append_eos and int(ids[-1]) != end:
            ids = torch.cat([ids, ids.new_tensor([end])])
        prepared.append(ids)
    return prepared


def _token_ids(name: str, answer: str | Sequence[int] | torch.Tensor, tokenizer: Any) -> torch.Tensor:
    shown = f"{name}={answer!r}" if isinstance(answer, str) else name
    if isinstance(answer, str):
        if tokenizer is None:
            raise ValueError(f"{shown} is text: pass tokenizer=processor.tokenizer as well")
        answer = tokenizer(answer, add_special_tokens=False).input_ids
    ids = torch.as_tensor(answer)
    if ids.numel() == 0:
        raise ValueError(f"{shown} has no tokens; an answer needs at least one")
    if ids.ndim != 1 or not is_whole(ids):
        raise ValueError(f"{shown} has shape {tuple(ids.shape)} and dtype {ids.dtype}; give (tokens,) whole numbers")
    return ids.long().cpu()


def _check_tokens(name: str, ids: torch.Tensor, config: Any) -> None:
    if bool((ids == config.mask_token_id).any()):
        raise ValueError(
            f"{name} holds mask_token_id={config.mask_token_id}, which stands for a token that is not known; "
            "pass finished answers"
        )
    outside = ids[(ids < 0) | (ids >= config.output_vocab_size)]
    if len(outside):
        raise ValueError(
            f"{name} holds token {int(outside[0])}, which the model cannot write: tokens must be less than "
            f"output_vocab_size={config.output_vocab_size} and not negative; tokenise it with the model's tokenizer"
        )


def _embed_prompt(
    model: Any, input_ids: torch.Tensor, present: torch.Tensor, pictures: dict[str, Any]
) -> torch.Tensor:
    """The prompt with pictures in place and without its padding, (1, prompt, hidden)."""
    embeds, _, _ = model.model.embed_inputs(input_ids, **pictures)
    return embeds[:, present.to(embeds.device)]


def _pass_values(
    model: Any,
    prompt: torch.Tensor,
    answers: list[torch.Tensor],
    masks: list[AnswerMasks],
    batch_size: int,
    guidance_scale: float,
) -> list[torch.Tensor]:
    """Run every mask of every answer: L / l * log-likelihood of the hidden tokens, (passes,) float64 per answer."""
    order = sorted(range(len(answers)), key=lambda index: len(answers[index]))  # little padding inside a batch
    rows = [(index, row) for index in order for row in range(len(masks[index].hidden))]
    found: list[list[float]] = [[] for _ in answers]
    for start in range(0, len(rows), batch_size):
        batch = rows[start : start + batch_size]
        tokens = pad_sequence([answers[index] for index, _ in batch], batch_first=True)  # (rows, longest)
        hidden = pad_sequence([masks[index].hidden[row] for index, row in batch], batch_first=True)  # (rows, longest)
        lengths = torch.tensor([len(answers[index]) for index, _ in batch])  # (rows,)
        sums = _hidden_log_likelihoods(model, prompt, tokens, hidden, lengths, guidance_scale)  # (rows,)
        for (index, _), value in zip(batch, (sums * lengths / hidden.sum(dim=1)).tolist(), strict=True):
            found[index].append(value)
    return [torch.tensor(values, dtype=torch.float64) for values in found]


def _hidden_log_likelihoods(
    model: Any,
    prompt: torch.Tensor,
    tokens: torch.Tensor,
    hidden: torch.Tensor,
    lengths: torch.Tensor,
    guidance_scale: float,
) -> torch.Tensor:
    """Sum of log p over the hidden tokens of each row, (rows,) float64; `tokens` are padded on the right."""
    device, embed, mask_token_id = prompt.device, model.get_input_embeddings(), model.config.mask_token_id
    canvas = embed(tokens.masked_fill(hidden, mask_token_id).to(device)).to(prompt.dtype)  # (rows, longest, hidden)
    prompts = prompt.expand(len(tokens), -1, -1)
    embeds = torch.cat([prompts, canvas], dim=1)
    if guidance_scale != 1:
        blind = embed(torch.full(prompts.shape[:2], mask_token_id, device=device)).to(prompt.dtype)
        embeds = torch.cat([embeds, torch.cat([blind, canvas], dim=1)])
    attention_mask = None
    if bool((lengths < tokens.shape[1]).any()):
        positions = torch.arange(-prompts.shape[1], tokens.shape[1])
        attention_mask = (positions < lengths[:, None]).long().to(device).repeat(len(embeds) // len(tokens), 1)
    states = model.model(inputs_embeds=embeds, attention_mask=attention_mask, return_dict=True).last_hidden_state
    states = states[:, prompts.shape[1] :].unflatten(0, (-1, len(tokens)))  # (1 or 2, rows, longest, hidden)
    states = states[:, hidden.to(device)]  # (1 or 2, positions, hidden)
    log_likelihoods = torch.cat(
        [
            _token_log_likelihoods(model, some, wanted, guidance_scale)
            for some, wanted in zip(
                states.split(HEAD_POSITIONS, dim=1), tokens[hidden].split(HEAD_POSITIONS), strict=True
            )
        ]
    )  # (positions,)
    return tokens.new_zeros(len(tokens), dtype=torch.float64).index_add_(0, hidden.nonzero()[:, 0], log_likelihoods)


def _token_log_likelihoods(
    model: Any, states: torch.Tensor, wanted: torch.Tensor, guidance_scale: float
) -> torch.Tensor:
    """Log p of the wanted tokens (positions,) at states (1 or 2, positions, hidden), (positions,) float64, CPU."""
    logits = model.lm_head(states)[..., : model.config.output_vocab_size]
    logits = logits.to(widest_float(logits.device))
    if len(logits) == 2:
        conditional, unconditional = logits
        logits = (unconditional + guidance_scale * (conditional - unconditional))[None]
    log_likelihoods = logits[0].log_softmax(dim=-1).gather(1, wanted.to(logits.device)[:, None])[:, 0]
    return log_likelihoods.cpu().double()


__all__ = ["LladaVScoringMixin", "LladaVScoringOutput"]
