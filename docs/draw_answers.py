"""How answers come about: the steps of a recorded run, and the noise of training."""

from typing import Any

import torch
from record import read_recorded
from svg import Drawing, text_width

from transformers_lladav.diffusion_lladav import hide_tokens, hiding_probability

PAD, GAP, ROW, BLOCK_GAP, SIZE = 4.0, 2.0, 20.0, 10.0, 12.0
MASK_WIDTH = 24.0
LEVELS = (0.1, 0.3, 0.5, 0.7, 0.9)
DRAWS_SEED = 20
MASK = -1  # any id that no token has


def cell_places(texts: list[str | None], left: float, block: int) -> list[tuple[float, float]]:
    """Where the cell of each slot begins and how wide it is, with a gap between blocks."""
    places, x = [], left
    for slot, text in enumerate(texts):
        x += BLOCK_GAP if slot and slot % block == 0 else 0
        width = MASK_WIDTH if text is None else text_width(text, SIZE) + 2 * PAD
        places.append((x, width))
        x += width + GAP
    return places


def draw_steps(run: dict[str, Any], title: str) -> str:
    """An answer after every step, a row each: masks grey, what the step wrote strong, what stood before pale.

    Args:
        run: of `recorded.json`.
        title: of the drawing.

    Returns:
        The SVG.
    """
    texts, _, written, confidence = ([slot[part] for slot in run["slots"]] for part in range(4))
    block, left, top = run["block_length"], 34.0, 34.0
    places = cell_places(texts, left, block)
    right = sum(places[-1]) + 12
    drawing = Drawing(right + 84, top + (run["steps"] + 1) * ROW + 4, title)
    for number in range(len(texts) // block):
        first, last = places[number * block], places[(number + 1) * block - 1]
        drawing.text((first[0] + sum(last)) / 2, 14, f"block {number + 1}", "soft small", 11, "middle")
        drawing.add("path", d=f"M{first[0]:.1f} 20H{sum(last):.1f}", kind="rule")
    drawing.text(left - 8, 14, "step", "soft small", 11, "end")
    drawing.text(right, 14, "how sure", "soft small", 11)
    for step in range(run["steps"] + 1):
        y = top + step * ROW
        drawing.text(left - 8, y + 11, str(step), "soft small", 11, "end")
        for text, when, (x, width) in zip(texts, written, places, strict=True):
            known = when is not None and when <= step
            fresh = known and when == step
            drawing.rect(x, y - 2, width, ROW - 4, "fresh" if fresh else "kept" if known else "mask")
            if known:
                drawing.word(x + PAD, y + 10, str(text), "on-fresh" if fresh else "", SIZE)
        sure = [confidence[slot] for slot, when in enumerate(written) if when == step]
        if sure:
            shown = "> 99.9 %" if min(sure) > 0.9995 else f"{100 * min(sure):.1f} %"
            drawing.text(right, y + 11, shown if len(sure) == 1 else f"{shown} and up", "soft small", 11)
    return drawing.svg()


def draw_schedule() -> str:
    """The example answer, a token per step."""
    run = read_recorded()["answers"]["schedule"]
    return draw_steps(run, f"An answer of the bundled checkpoint, a token per step: {run['steps']} steps")


def draw_threshold() -> str:
    """The example answer, every token at once of which the model is sure."""
    run = read_recorded()["answers"]["threshold"]
    sure = run["settings"]["threshold"]
    return draw_steps(run, f"The same answer with every token at once that is at least {sure:.0%} probable")


def draw_noise() -> str:
    """The example answer as training sees it, at several noise levels with one set of draws.

    Returns:
        The SVG.
    """
    slots = [slot for slot in read_recorded()["answers"]["schedule"]["slots"] if slot[0] is not None]
    texts, answer = [text for text, *_ in slots], torch.tensor([[token for _, token, *_ in slots]])
    draws = torch.rand(answer.shape, generator=torch.Generator().manual_seed(DRAWS_SEED))
    left, top = 50.0, 34.0
    places = cell_places(texts, left, len(texts))
    right = sum(places[-1]) + 12
    drawing = Drawing(right + 112, top + len(LEVELS) * (ROW + 6), "What training hides of an answer, by noise level")
    drawing.text(left - 8, 14, "level t", "soft small", 11, "end")
    drawing.text(right, 14, "hidden, each counts", "soft small", 11)
    for row, level in enumerate(LEVELS):
        y = top + row * (ROW + 6)
        noised = hide_tokens(answer, answer, torch.tensor([level]), draws, MASK)
        hidden = (noised.labels[0] >= 0).tolist()
        drawing.text(left - 8, y + 11, f"{level:.1f}", "soft small", 11, "end")
        for text, masked, (x, width) in zip(texts, hidden, places, strict=True):
            drawing.rect(x, y - 2, width, ROW - 2, "mask" if masked else "kept")
            if not masked:
                drawing.word(x + PAD, y + 11, text, "", SIZE)
        weight = float(1 / (hiding_probability(torch.tensor(level)) * len(texts)))
        drawing.text(right, y + 11, f"{sum(hidden)} of {len(texts)}, {weight:.3f}", "soft small", 11)
    return drawing.svg()
