"""Where an answer goes: masks behind the prompt, or holes inside the last message."""

from dataclasses import dataclass

import torch


@dataclass
class Canvas:
    """Whole sequences, and which of their positions are to be written.

    Attributes:
        input_ids: (batch, length), masks at the canvas.
        attention_mask: (batch, length), 0 at padding, or None when nothing is padded.
        slots: (batch, canvas), where in the sequence each position of the canvas stands.
        present: (batch, canvas), which of them exist; rows with fewer holes have fewer.
        blind: (batch, length), what guidance hides: all but the canvas and the text that belongs to the answer.
    """

    input_ids: torch.Tensor
    attention_mask: torch.Tensor | None
    slots: torch.Tensor
    present: torch.Tensor
    blind: torch.Tensor


def is_whole(ids: torch.Tensor) -> bool:
    """Whether a tensor holds whole numbers, as ids are."""
    return not (ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool)


def check_tokens(name: str, ids: torch.Tensor, vocab_size: int) -> None:
    """Refuse ids that have no embedding: on a GPU they would end the whole process.

    Args:
        name: of the argument that holds them.
        ids: whole numbers of any shape.
        vocab_size: rows of the embedding.

    Raises:
        ValueError: with the first of them.
    """
    if len(outside := ids[(ids < 0) | (ids >= vocab_size)]):
        last = vocab_size - 1
        raise ValueError(
            f"{name} hold token {int(outside[0])}, but the model has tokens 0 to {last}; use its own processor"
        )


def append_canvas(
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor | None,
    length: int,
    mask_token_id: int,
    suffix: torch.Tensor,
) -> Canvas:
    """Put masks, and what follows the answer, behind the prompt.

    Args:
        input_ids: (batch, prompt).
        attention_mask: (batch, prompt) or None.
        length: how many masks.
        mask_token_id: the mask.
        suffix: (batch, suffix), possibly of width 0.

    Returns:
        The canvas.
    """
    batch, prompt = input_ids.shape
    masks = input_ids.new_full((batch, length), mask_token_id)
    sequence = torch.cat([input_ids, masks, suffix], dim=1)
    if attention_mask is not None:
        behind = attention_mask.new_ones(batch, length + suffix.shape[1])
        attention_mask = torch.cat([attention_mask, behind], dim=1)
    slots = torch.arange(prompt, prompt + length, device=input_ids.device).expand(batch, -1)
    blind = torch.arange(sequence.shape[1], device=input_ids.device).expand(batch, -1) < prompt
    return Canvas(sequence, attention_mask, slots, torch.ones_like(slots, dtype=torch.bool), blind)


def open_holes(
    input_ids: torch.Tensor, attention_mask: torch.Tensor | None, mask_token_id: int, end_ids: list[int]
) -> Canvas:
    """Take the masks inside the last message of every sample as its canvas.

    Args:
        input_ids: (batch, length), the last message closed by an end token or open.
        attention_mask: (batch, length) or None.
        mask_token_id: the mask.
        end_ids: tokens that end a message.

    Returns:
        The canvas, as wide as the most holes of a sample.

    Raises:
        ValueError: if a sample has no holes, or one outside its last message.
    """
    real = torch.ones_like(input_ids, dtype=torch.bool) if attention_mask is None else attention_mask.bool()
    holes = (input_ids == mask_token_id) & real
    ends = torch.isin(input_ids, input_ids.new_tensor(end_ids)) & real
    last = torch.arange(input_ids.shape[1], device=input_ids.device) == _last_true(real)[:, None]
    # The last message begins behind the last end token that is not the end of the sequence.
    inside = torch.arange(input_ids.shape[1], device=input_ids.device) > _last_true(ends & ~last)[:, None]
    for sample in range(len(input_ids)):
        outside = (holes[sample] & ~inside[sample]).nonzero()[:, 0].tolist()
        if outside:
            raise ValueError(
                f"sample {sample} has mask tokens at positions {outside} outside its last message; only holes in the "
                "last assistant message are filled: build the prompt with processor.infilling_inputs"
            )
        if not holes[sample].any():
            raise ValueError(
                f"sample {sample} has no holes to fill; write them as [MASK:n] in the last assistant message and "
                "build the prompt with processor.infilling_inputs"
            )
    counts = holes.sum(dim=1)  # (batch,)
    # Holes first, each row in order; a stable sort keeps the order.
    slots = (~holes).to(torch.uint8).argsort(dim=1, stable=True)[:, : int(counts.max())]
    present = torch.arange(slots.shape[1], device=slots.device) < counts[:, None]
    return Canvas(input_ids.clone(), attention_mask, slots, present, ~inside)


def prompt_tail(canvas: Canvas, placeholder_ids: list[int], length: int) -> torch.Tensor:
    """The end of each prompt, which holds the question: text behind the last picture.

    Args:
        canvas: whole sequences.
        placeholder_ids: tokens that stand for pictures and videos.
        length: tokens of a prompt at most.

    Returns:
        (batch, sequence), true there.
    """
    real = canvas.blind if canvas.attention_mask is None else canvas.blind & canvas.attention_mask.bool()
    pictures = torch.isin(canvas.input_ids, canvas.input_ids.new_tensor(placeholder_ids)) & real
    behind = torch.arange(real.shape[1], device=real.device) > _last_true(pictures)[:, None]
    from_end = real.sum(dim=1, keepdim=True) - real.cumsum(dim=1)  # 0 at the last token of a prompt
    return real & behind & (from_end < length)


def _last_true(flags: torch.Tensor) -> torch.Tensor:
    """Index of the last true entry of every row, -1 where there is none, (batch,)."""
    positions = torch.arange(flags.shape[1], device=flags.device)
    return torch.where(flags, positions, -1).amax(dim=1)
