"""Letters and digits drawn with strokes, in as many hands as there are styles; and one real typeface.

The skeleton of a character is a set of polylines on a field of 5 x 7 points. A style says how heavy, wide, slanted and
round the strokes are. The pictures do not depend on the fonts of a machine, only on Pillow's drawing.
"""

import math
import random
from dataclasses import dataclass, replace
from itertools import pairwise

from PIL import Image, ImageDraw, ImageFont

RGB = tuple[int, int, int]
Point = tuple[float, float]

# Points are two digits, x from 0 (left) to 4 and y from 0 (top) to 6; strokes are separated by blanks.
_STROKES = {
    "A": "06-20-46 14-34", "B": "00-06-36-45-44-33-03 00-30-41-42-33", "C": "41-30-10-01-05-16-36-45",
    "D": "00-06-26-44-42-20-00", "E": "40-00-06-46 03-33", "F": "40-00-06 03-33",
    "G": "41-30-10-01-05-16-36-45-43-23", "H": "00-06 40-46 03-43", "I": "20-26", "J": "40-45-36-16-05",
    "K": "00-06 40-03-46", "L": "00-06-46", "M": "06-00-23-40-46", "N": "06-00-46-40",
    "O": "20-30-41-45-36-16-05-01-10-20", "P": "06-00-30-41-42-33-03", "Q": "20-30-41-45-36-16-05-01-10-20 24-46",
    "R": "06-00-30-41-42-33-03 23-46", "S": "41-30-10-01-02-13-33-44-45-36-16-05", "T": "00-40 20-26",
    "U": "00-05-16-36-45-40", "V": "00-26-40", "W": "00-16-22-36-40", "X": "00-46 40-06", "Y": "00-23-40 23-26",
    "Z": "00-40-06-46", "0": "20-30-41-45-36-16-05-01-10-20", "1": "11-20-26 16-36", "2": "01-10-30-41-42-06-46",
    "3": "01-10-30-41-42-33-44-45-36-16-05 33-23", "4": "36-30-04-44", "5": "40-00-02-32-43-45-36-16-05",
    "6": "41-30-10-01-05-16-36-45-44-33-13-04", "7": "00-40-16",
    "8": "13-02-01-10-30-41-42-33-44-45-36-16-05-04-13-33",
    "9": "05-16-36-45-41-30-10-01-02-13-33-42",
}  # fmt: skip
CHARACTERS = "".join(_STROKES)
POLYLINES: dict[str, tuple[tuple[Point, ...], ...]] = {
    character: tuple(
        tuple((float(point[0]), float(point[1])) for point in stroke.split("-")) for stroke in strokes.split()
    )
    for character, strokes in _STROKES.items()
}


@dataclass(frozen=True)
class Style:
    """How characters are drawn.

    Attributes:
        weight: width of the strokes over the height of the characters.
        width: of a character over its height.
        slant: how far the top leans to the right, over the height.
        rounding: how often corners are cut.
        typeface: draw with Pillow's own typeface (Aileron) in place of strokes; the others then mean nothing.
    """

    weight: float
    width: float
    slant: float
    rounding: int
    typeface: bool = False


def draw_style(rng: random.Random, unseen: bool = False) -> Style:
    """Draw a style.

    Args:
        rng: source of the draws.
        unseen: the typeface that is never trained.

    Returns:
        The style.
    """
    style = Style(
        weight=rng.uniform(0.09, 0.2),
        width=rng.uniform(0.46, 0.62),
        slant=rng.choice((0.0, 0.0, rng.uniform(-0.1, 0.2))),
        rounding=rng.randrange(3),
    )
    return replace(style, typeface=True) if unseen else style


def write(
    draw: ImageDraw.ImageDraw, character: str, middle: float, top: float, height: float, style: Style, ink: RGB
) -> None:
    """Write a character.

    Args:
        draw: on a picture.
        character: one of `CHARACTERS`.
        middle: pixels from the left, where the middle of the character comes.
        top: pixels, of the character.
        height: pixels, of the character.
        style: how it is drawn.
        ink: colour.

    Raises:
        ImportError: if it is to be drawn in the typeface, and Pillow was built without FreeType.
    """
    if style.typeface:
        _write_typeface(draw, character, middle, top, height, ink)
        return
    pen = style.weight * height
    breadth = style.width * height
    for stroke in POLYLINES[character]:
        points = [
            (
                middle + (x / 4 - 0.5) * breadth + style.slant * (0.5 - y / 6) * height,
                top + pen / 2 + (height - pen) * y / 6,
            )
            for x, y in _rounded(stroke, style.rounding)
        ]
        draw.line(points, fill=ink, width=max(1, round(pen)), joint="curve")
        for x, y in (points[0], points[-1]):
            draw.ellipse((x - pen / 2, y - pen / 2, x + pen / 2, y + pen / 2), fill=ink)


def _rounded(stroke: tuple[Point, ...], times: int) -> list[Point]:
    """Cut the corners of a polyline a quarter off each side, several times; its ends stay."""
    points = list(stroke)
    for _ in range(times):
        cut = [points[0]]
        for (x, y), (u, v) in pairwise(points):
            cut += [(0.75 * x + 0.25 * u, 0.75 * y + 0.25 * v), (0.25 * x + 0.75 * u, 0.25 * y + 0.75 * v)]
        points = [*cut, points[-1]]
    return points


def _write_typeface(
    draw: ImageDraw.ImageDraw, character: str, middle: float, top: float, height: float, ink: RGB
) -> None:
    """Write a character in the typeface; a wide one is condensed, as its cell has no more room."""
    font = _typeface(100 * height / _CAPITAL)
    left, upper, right, lower = font.getbbox(character, anchor="ms")
    mask = Image.new("L", (math.ceil(right - left), math.ceil(lower - upper)))
    ImageDraw.Draw(mask).text((-left, -upper), character, fill=255, font=font, anchor="ms")
    mask = mask.resize((min(mask.width, round(_WIDEST * height)), mask.height))
    draw.bitmap((round(middle - mask.width / 2), round(top + height + upper)), mask, fill=ink)


_CAPITAL = 71.0  # height of Aileron's capitals at size 100
_WIDEST = 0.8  # of a character over its height


def _typeface(size: float) -> ImageFont.FreeTypeFont:
    font = ImageFont.load_default(size=size)
    if not isinstance(font, ImageFont.FreeTypeFont):
        raise ImportError("the unseen typeface needs Pillow with FreeType; install a binary wheel: pip install pillow")
    return font
