"""What may be written where: allowed tokens per position, answers from a list, no repeated n-grams, logits processors.

A constraint first takes tokens away from the logits. Where several tokens are written in one step it is asked again,
surest token first, because two that are fine alone may not be fine together.
"""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from transformers.generation import (
    ClassifierFreeGuidanceLogitsProcessor,
    EncoderNoRepeatNGramLogitsProcessor,
    ExponentialDecayLengthPenalty,
    ForcedBOSTokenLogitsProcessor,
    ForcedEOSTokenLogitsProcessor,
    LogitsProcessorList,
    MinLengthLogitsProcessor,
    MinNewTokensLengthLogitsProcessor,
    NoBadWordsLogitsProcessor,
    NoRepeatNGramLogitsProcessor,
    PrefixConstrainedLogitsProcessor,
    SequenceBiasLogitsProcessor,
    SuppressTokensAtBeginLogitsProcessor,
    SynthIDTextWatermarkLogitsProcessor,
    UnbatchedClassifierFreeGuidanceLogitsProcessor,
    WatermarkLogitsProcessor,
)

AllowedTokens = Callable[[int, int, torch.Tensor], Sequence[int] | None]

NEXT_TOKEN = "it looks at the tokens just before the next one, and a denoising loop writes in any order"
REFUSED_PROCESSORS = {
    NoRepeatNGramLogitsProcessor: "give no_repeat_ngram_size",
    EncoderNoRepeatNGramLogitsProcessor: NEXT_TOKEN,
    PrefixConstrainedLogitsProcessor: "give allowed_tokens_fn",
    NoBadWordsLogitsProcessor: NEXT_TOKEN,
    SequenceBiasLogitsProcessor: NEXT_TOKEN,
    MinLengthLogitsProcessor: "an answer ends where the model writes a stop",
    MinNewTokensLengthLogitsProcessor: "an answer ends where the model writes a stop",
    ForcedBOSTokenLogitsProcessor: "put what the answer begins with into the prompt (continue_final_message)",
    ForcedEOSTokenLogitsProcessor: "give what the answer ends with as suffix_ids",
    ExponentialDecayLengthPenalty: NEXT_TOKEN,
    SuppressTokensAtBeginLogitsProcessor: "give allowed_tokens_fn",
    ClassifierFreeGuidanceLogitsProcessor: "give guidance_scale",
    UnbatchedClassifierFreeGuidanceLogitsProcessor: "give guidance_scale",
    WatermarkLogitsProcessor: NEXT_TOKEN,
    SynthIDTextWatermarkLogitsProcessor: NEXT_TOKEN,
}


class Constraint(Protocol):
    """The interface of a constraint; an answer is (canvas,) token ids with mask tokens where nothing is written."""

    def restrict(self, sample: int, answer: torch.Tensor, positions: list[int], logits: torch.Tensor) -> torch.Tensor:
        """Logits (positions, vocabulary) with -inf where a token may not be written."""
        ...

    def permits(self, sample: int, answer: torch.Tensor, position: int, token: int) -> bool:
        """Whether a token may be written at a position of this answer."""
        ...


class AllowedTokensConstraint:
    """Asks a function which tokens a position may take.

    Args:
        function: called with the sample's row, the position in the answer and the answer so far, (canvas,); returns
            token ids, or None for any.
    """

    def __init__(self, function: AllowedTokens) -> None:
        self.function = function

    def restrict(self, sample: int, answer: torch.Tensor, positions: list[int], logits: torch.Tensor) -> torch.Tensor:
        """See [`Constraint`].

        Raises:
            ValueError: if the function allows nothing, or ids that the model cannot write.
        """
        logits = logits.clone()
        for row, position in enumerate(positions):
            allowed = self.function(sample, position, answer)
            if allowed is None:
                continue
            ids = torch.as_tensor(list(allowed), dtype=torch.long, device=logits.device)
            if not len(ids) or int(ids.min()) < 0 or int(ids.max()) >= logits.shape[1]:
                raise ValueError(
                    f"allowed_tokens_fn gave {ids.tolist()} for position {position} of sample {sample}; give at least "
                    f"one id below {logits.shape[1]}, or None to allow all"
                )
            kept = logits[row, ids]
            logits[row] = -torch.inf
            logits[row, ids] = kept
        return logits

    def permits(self, sample: int, answer: torch.Tensor, position: int, token: int) -> bool:
        """See [`Constraint`]."""
        allowed = self.function(sample, position, answer)
        return allowed is None or token in allowed


class AnswerChoices:
    """Restricts an answer to one of several, whatever order its tokens are written in; for `allowed_tokens_fn`.

    Args:
        choices: token ids of each answer.
        end: the token that follows the answer, up to the end of the canvas.
        mask_token_id: stands for what is not written yet.

    Raises:
        ValueError: without choices, or if one is empty.
    """

    def __init__(self, choices: Sequence[Sequence[int]], end: int, mask_token_id: int) -> None:
        if not choices:
            raise ValueError("choices is empty; give at least one answer to choose from")
        for index, choice in enumerate(choices):
            if not len(choice):
                raise ValueError(f"choice {index} has no tokens; give a text that is not empty")
        self.choices, self.end, self.mask_token_id = [list(choice) for choice in choices], end, mask_token_id

    @property
    def length(self) -> int:
        """Tokens of the longest choice and its end."""
        return max(map(len, self.choices)) + 1

    def __call__(self, sample: int, position: int, answer: torch.Tensor) -> list[int]:
        """Tokens that some choice has at a position, among the choices that agree with what is written."""
        written = answer.tolist()
        if len(written) < self.length:
            raise ValueError(
                f"the canvas has {len(written)} tokens and the longest choice with its end {self.length}; "
                f"pass max_new_tokens={self.length} or more"
            )
        padded = [choice + [self.end] * (len(written) - len(choice)) for choice in self.choices]
        possible = [
            choice
            for choice in padded
            if all(is_at in (self.mask_token_id, goes) for is_at, goes in zip(written, choice, strict=True))
        ]
        return sorted({choice[position] for choice in possible})


class NoRepeatedNgrams:
    """Keeps a sequence of n tokens from being written twice in an answer.

    Args:
        size: n.
        mask_token_id: stands for what is not written yet.
    """

    def __init__(self, size: int, mask_token_id: int) -> None:
        self.size, self.mask_token_id = size, mask_token_id

    def restrict(self, sample: int, answer: torch.Tensor, positions: list[int], logits: torch.Tensor) -> torch.Tensor:
        """See [`Constraint`]."""
        if len(answer) < self.size:
            return logits
        logits = logits.clone()
        row_of = torch.full_like(answer, -1)
        row_of[positions] = torch.arange(len(positions), device=answer.device)
        windows = answer.unfold(0, self.size, 1)  # (windows, size)
        masked = windows == self.mask_token_id
        masks, places = masked.sum(dim=1), torch.arange(len(windows), device=answer.device)
        gap_at = places + masked.int().argmax(dim=1)  # where a window that lacks one token lacks it
        for offset in range(self.size):
            starts = (masked[:, offset] & (masks == 1)).nonzero()[:, 0]
            rest = [index for index in range(self.size) if index != offset]
            # A gap may repeat a window that is complete, or one that overlaps and lacks the same token.
            same_gap = (masks == 1) & (gap_at == (starts + offset)[:, None]) & (places != starts[:, None])
            filled = torch.where(masked, windows[:, offset, None], windows)
            twin = (windows[starts][:, None, rest] == filled[None, :, rest]).all(dim=2)  # (gaps, windows)
            which, source = (twin & (same_gap | (masks == 0))).nonzero(as_tuple=True)
            rows = row_of[starts[which] + offset]
            logits[rows[rows >= 0], windows[source, offset][rows >= 0]] = -torch.inf
        return logits

    def permits(self, sample: int, answer: torch.Tensor, position: int, token: int) -> bool:
        """See [`Constraint`]."""
        after = answer.clone()
        after[position] = token
        if len(after) < self.size:
            return True
        windows = after.unfold(0, self.size, 1)
        complete = ~(windows == self.mask_token_id).any(dim=1)
        starts = range(max(0, position - self.size + 1), min(position, len(windows) - 1) + 1)
        for start in starts:
            same = (windows == windows[start]).all(dim=1) & complete
            if bool(complete[start]) and int(same.sum()) > 1:
                return False
        return True


class LogitsProcessors:
    """Lets logits processors of transformers change the logits of every masked position.

    A processor is called once per sample and step with `input_ids` (positions, tokens), the tokens of prompt and
    answer that are known and can be written, in order, the same in every row, and `scores` (positions, vocabulary).
    Processors that ask what stands just before the next token are refused.

    Args:
        processors: a list of them, or one.
        prompts: per sample, the ids of its prompt without padding.
        mask_token_id: stands for what is not written yet.

    Raises:
        ValueError: for a processor that makes no sense here, with the reason.
        TypeError: for something that cannot be called.
    """

    def __init__(self, processors: Any, prompts: list[torch.Tensor], mask_token_id: int) -> None:
        checked = list(processors) if isinstance(processors, list | tuple) else [processors]
        for item in checked:
            for refused, reason in REFUSED_PROCESSORS.items():
                if isinstance(item, refused):
                    raise ValueError(f"generate() does not take {type(item).__name__}: {reason}")
            if not callable(item):
                raise TypeError(f"logits_processor holds {item!r}; give processors of transformers or other callables")
        self.processors = LogitsProcessorList(checked)
        self.prompts, self.mask_token_id = prompts, mask_token_id

    def restrict(self, sample: int, answer: torch.Tensor, positions: list[int], logits: torch.Tensor) -> torch.Tensor:
        """See [`Constraint`]."""
        known = torch.cat([self.prompts[sample], answer])
        known = known[(known < logits.shape[1]) & (known != self.mask_token_id)]
        return self.processors(known.expand(len(positions), -1), logits)

    def permits(self, sample: int, answer: torch.Tensor, position: int, token: int) -> bool:
        """See [`Constraint`]; a processor weighs tokens, it does not judge them together."""
        return True


def restrict_all(
    constraints: list[Constraint],
    samples: list[int],
    answers: torch.Tensor,
    places: torch.Tensor,
    logits: torch.Tensor,
) -> torch.Tensor:
    """Apply constraints to the logits of a step.

    Args:
        constraints: in order.
        samples: (rows,) batch rows.
        answers: (rows, canvas).
        places: (rows, canvas), true at the positions the logits belong to.
        logits: (positions, vocabulary) in the order of `places`.

    Returns:
        The logits with -inf where a token may not be written; what was -inf before stays so.

    Raises:
        ValueError: if nothing is left for a position.
    """
    parts = list(logits.split(places.sum(dim=1).tolist()))
    for row, sample in enumerate(samples):
        positions = places[row].nonzero()[:, 0].tolist()
        if not positions:
            continue
        for constraint in constraints:
            unwritable = parts[row] == -torch.inf
            restricted = constraint.restrict(sample, answers[row], positions, parts[row])
            parts[row] = restricted.masked_fill(unwritable, -torch.inf)
        empty = (parts[row] == -torch.inf).all(dim=1).nonzero()[:, 0].tolist()
        if empty:
            raise ValueError(
                f"the constraints leave no token for position {positions[empty[0]]} of sample {sample}; allow more "
                "tokens, a larger n-gram, or choices that fit the canvas"
            )
    return torch.cat(parts)


def permitted_together(
    constraints: list[Constraint],
    sample: int,
    answer: torch.Tensor,
    tokens: list[int],
    by_confidence: list[int],
) -> list[int]:
    """Of positions that are to be written in one step, keep those that fit with the surer ones.

    Args:
        constraints: what to ask.
        sample: the batch row.
        answer: (canvas,) before the step.
        tokens: what goes to each of `by_confidence`.
        by_confidence: positions in the answer, surest first.

    Returns:
        Indices into `by_confidence`; never empty if that is not, since the surest one always fits.
    """
    draft, kept = answer.clone(), []
    for index, (position, token) in enumerate(zip(by_confidence, tokens, strict=True)):
        if all(constraint.permits(sample, draft, position, token) for constraint in constraints):
            draft[position] = token
            kept.append(index)
    return kept
