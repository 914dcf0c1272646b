"""Bar charts: two to five coloured bars of whole values from 1 to 9, over lines to read them by."""

import random
from dataclasses import dataclass

from PIL import Image, ImageDraw

from .shape_scenes import BACKGROUNDS, COLOURS, SUPERSAMPLING
from .splits import is_held_out, split_seed

BARS = (2, 5)
MAX_VALUE = 9
# Fractions of the side of the picture.
UNIT = 0.092
LEFT, RIGHT = 0.08, 0.96


@dataclass(frozen=True)
class Chart:
    """Coloured bars from left to right."""

    background: tuple[int, int, int]
    colours: tuple[str, ...]
    values: tuple[int, ...]
    floor: float
    fill: float

    @property
    def layout(self) -> str:
        """What the picture says: "red 3, blue 7"."""
        return ", ".join(f"{colour} {value}" for colour, value in zip(self.colours, self.values, strict=True))

    def centres(self) -> list[float]:
        """Where the middles of the bars are, in fractions of the side."""
        step = (RIGHT - LEFT) / len(self.values)
        return [LEFT + (number + 0.5) * step for number in range(len(self.values))]


def make_chart(split: str, index: int) -> Chart:
    """Make the chart number `index` of a split; the same arguments give the same chart on every machine.

    Args:
        split: one of `splits.SPLIT_SEEDS`.
        index: from 0.

    Returns:
        The chart.

    Raises:
        ValueError: if there is no such split or index.
    """
    rng = random.Random(f"chart {split_seed(split, index)}")
    count = rng.randint(*BARS)
    while True:
        chart = Chart(
            background=rng.choice(BACKGROUNDS[:-1]),
            colours=tuple(rng.sample(list(COLOURS), count)),
            values=tuple(rng.randint(1, MAX_VALUE) for _ in range(count)),
            floor=rng.uniform(0.915, 0.955),
            fill=rng.uniform(0.55, 0.85),
        )
        if is_held_out(chart.layout) == (split != "train"):
            return chart


def render_chart(chart: Chart, size: int) -> Image.Image:
    """Draw a chart.

    Args:
        chart: what to draw.
        size: pixels along one side.

    Returns:
        An RGB picture.
    """
    side = SUPERSAMPLING * size
    canvas = Image.new("RGB", (side, side), chart.background)
    draw = ImageDraw.Draw(canvas)
    faint = tuple(channel * 7 // 8 for channel in chart.background)
    half = chart.fill * (RIGHT - LEFT) / len(chart.values) / 2
    for value in range(1, MAX_VALUE + 1):
        y = side * (chart.floor - value * UNIT)
        draw.line((side * LEFT, y, side * RIGHT, y), fill=faint, width=SUPERSAMPLING)
    for colour, value, x in zip(chart.colours, chart.values, chart.centres(), strict=True):
        box = (x - half, chart.floor - value * UNIT, x + half, chart.floor)
        draw.rectangle([side * edge for edge in box], fill=COLOURS[colour])
    for line in ((LEFT, chart.floor, RIGHT, chart.floor), (LEFT, chart.floor - 9.5 * UNIT, LEFT, chart.floor)):
        draw.line([side * edge for edge in line], fill=(40, 42, 46), width=SUPERSAMPLING)
    return canvas.reduce(SUPERSAMPLING)
