"""Which positions of prompt and answer each pass runs anew, and which are remembered: a recorded run of each kind."""

from typing import Any

from record import read_recorded
from svg import Drawing

LEFT, ROW, GAP, CELL = 62.0, 9.0, 3.0, 6.2
NAMES = {
    "exact": ("exact", "everything, in every pass"),
    "balanced": ("balanced", "everything in every second pass, question and answer in between"),
    "fast": ("fast", "everything once, then question and answer"),
    "dual": ("dual cache", "everything as a block begins, then the block alone"),
}


def parts_of(run: dict[str, Any]) -> list[tuple[str, int, int]]:
    """Names, first and last + 1 of the parts of a sequence."""
    first, last = run["picture"]
    block = run["block_length"]
    blocks = [
        (f"block {number + 1}", start, min(start + block, run["length"]))
        for number, start in enumerate(range(run["prompt"], run["length"], block))
    ]
    return [("instructions", 0, first), ("picture", first, last), ("question", last, run["prompt"]), *blocks]


def draw_caches() -> str:
    """The passes of four runs over the positions of one sequence.

    Returns:
        The SVG.
    """
    runs = read_recorded()["caches"]
    length = runs["exact"]["length"]
    parts = parts_of(runs["exact"])
    offsets = [4.0 * sum(position >= last for _, _, last in parts) for position in range(length)]
    places = [LEFT + position * CELL + offset for position, offset in enumerate(offsets)]
    right = places[-1] + CELL + 10
    heights = {name: 34 + len(run["passes"]) * (ROW + GAP) for name, run in runs.items()}
    drawing = Drawing(right + 84, 30 + sum(heights.values()), "What each pass runs anew and what it remembers")
    for name, first, last in parts:
        middle = (places[first] + places[last - 1] + CELL) / 2
        drawing.text(middle, 12, name, "soft small", 10, "middle")
    drawing.text(right, 12, "positions run", "soft small", 10)
    y = 30.0
    for name, run in runs.items():
        title, words = NAMES[name]
        drawing.text(LEFT, y + 8, title, "strong", 12)
        drawing.text(LEFT + 8 * len(title) + 6, y + 8, words, "soft", 12)
        _draw_run(drawing, run, places, y + 16)
        y += heights[name]
    return drawing.svg()


def _draw_run(drawing: Drawing, run: dict[str, Any], places: list[float], top: float) -> None:
    """The passes of a run, a row each; a frame marks the block that is written."""
    for number, taken in enumerate(run["passes"]):
        y = top + number * (ROW + GAP)
        ran = [any(first <= position < last for first, last in taken["run"]) for position in range(run["length"])]
        start = 0
        for position in range(1, run["length"] + 1):
            ends = position == run["length"]
            if ends or ran[position] != ran[start] or places[position] - places[position - 1] > CELL + 1:
                width = places[position - 1] + CELL - places[start]
                drawing.rect(places[start], y, width, ROW, "run" if ran[start] else "remembered", 1)
                start = position
        first = run["prompt"] + taken["block"] * run["block_length"]
        width = places[first + run["block_length"] - 1] + CELL - places[first]
        drawing.rect(places[first] - 1.4, y - 1.2, width + 2.8, ROW + 2.4, "frame", 2)
        drawing.text(LEFT - 8, y + 8, f"pass {number + 1}", "soft small", 9, "end")
        drawing.text(places[-1] + CELL + 10, y + 8, str(sum(ran)), "soft small", 9)
    total = sum(last - first for taken in run["passes"] for first, last in taken["run"])
    y = top + len(run["passes"]) * (ROW + GAP) + 6
    drawing.text(places[-1] + CELL + 10, y + 2, f"{total:,} in all", "strong small", 10)
