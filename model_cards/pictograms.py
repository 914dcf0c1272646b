"""Pictures of emoji with questions about them: a world that the bundled checkpoint has never seen.

A picture shows one pictogram or two in cells of a 2 x 2 grid, on a plain background, at random place in the cell, size
and rotation. Everything follows from the split and a number, as in `transformers_lladav.suite`. Pictures of different
splits are different draws; the pairs of pictograms in `HELD_OUT_PAIRS` are together in no picture of the training
split, and in every picture of the split "unseen_pairs".

The glyphs are those of Noto Color Emoji (SIL Open Font License 1.1).
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from transformers_lladav.scene_questions import Question
from transformers_lladav.shape_scenes import NUMBER_WORDS
from transformers_lladav.suite import PICTURE_SIDE

FONT = Path("/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf")
FONT_SIZE = 109  # the only one that its bitmaps have
PICTOGRAMS = {
    "apple": "\N{RED APPLE}",
    "boat": "\N{SAILBOAT}",
    "book": "\N{CLOSED BOOK}",
    "car": "\N{AUTOMOBILE}",
    "cat": "\N{CAT FACE}",
    "hat": "\N{TOP HAT}",
    "ring": "\N{RING}",
    "tree": "\N{EVERGREEN TREE}",
}
NAMES = tuple(PICTOGRAMS)
# Each pictogram is in two of these pairs.
HELD_OUT_PAIRS = frozenset(frozenset((name, NAMES[(i + 3) % len(NAMES)])) for i, name in enumerate(NAMES))
SEEN_PAIRS = tuple(pair for pair in combinations(NAMES, 2) if frozenset(pair) not in HELD_OUT_PAIRS)
BACKGROUNDS = {
    "white": (252, 252, 252),
    "sand": (236, 222, 190),
    "pink": (246, 208, 216),
    "mint": (196, 232, 212),
    "sky": (188, 216, 244),
    "lilac": (214, 202, 240),
    "grey": (150, 154, 160),
    "night": (40, 44, 60),
}
PLACES = ("top left", "top right", "bottom left", "bottom right")
SPLITS = ("train", "validation", "test", "unseen_pairs")
MAX_ROTATION = 20.0
SIZES = (0.36, 0.46)  # of the side of the picture; a cell has half of it
SIDE = PICTURE_SIDE


@dataclass(frozen=True)
class Placed:
    """A pictogram in a picture.

    Attributes:
        name: a key of `PICTOGRAMS`.
        place: the cell, such as "top left".
        x: its middle, as a share of the side.
        y: its middle, as a share of the side.
        size: its longer side before it is turned, as a share of the side.
        rotation: in degrees.
    """

    name: str
    place: str
    x: float
    y: float
    size: float
    rotation: float


@dataclass(frozen=True)
class PictogramScene:
    """A background and one or two pictograms."""

    background: str
    items: tuple[Placed, ...]


def make_scene(split: str, index: int) -> PictogramScene:
    """Make a scene; the same arguments give the same scene on every machine.

    Args:
        split: one of `SPLITS`.
        index: its number. Even ones of all splits but "unseen_pairs" show one pictogram, odd ones two.

    Returns:
        The scene.

    Raises:
        ValueError: for another split.
    """
    if split not in SPLITS:
        raise ValueError(f"split={split!r} is not a split of the pictograms; pass one of {', '.join(SPLITS)}")
    rng = random.Random(f"pictograms {split} {index}")
    background = rng.choice(list(BACKGROUNDS))
    if split != "unseen_pairs" and index % 2 == 0:
        return PictogramScene(background, (_place(rng, rng.choice(NAMES), rng.choice(PLACES)),))
    pairs = sorted(map(sorted, HELD_OUT_PAIRS)) if split == "unseen_pairs" else SEEN_PAIRS
    names = list(rng.choice(pairs))
    rng.shuffle(names)
    places = rng.sample(PLACES, 2)
    return PictogramScene(background, tuple(_place(rng, *given) for given in zip(names, places, strict=True)))


def _place(rng: random.Random, name: str, place: str) -> Placed:
    size = rng.uniform(*SIZES)
    row, column = divmod(PLACES.index(place), 2)
    x, y = (0.5 * cell + size / 2 + rng.uniform(0, 0.5 - size) for cell in (column, row))
    return Placed(name, place, x, y, size, rng.uniform(-MAX_ROTATION, MAX_ROTATION))


@lru_cache
def glyph(name: str, font: Path = FONT) -> Image.Image:
    """Draw a pictogram in the middle of a transparent square.

    Args:
        name: a key of `PICTOGRAMS`.
        font: Noto Color Emoji.

    Returns:
        An RGBA picture, cut to what is drawn.

    Raises:
        FileNotFoundError: if the font is not there.
    """
    if not font.is_file():
        raise FileNotFoundError(f"{font} is not there; install it (Debian: apt install fonts-noto-color-emoji)")
    loaded = ImageFont.truetype(font, FONT_SIZE)
    canvas = Image.new("RGBA", (2 * FONT_SIZE, 2 * FONT_SIZE))
    ImageDraw.Draw(canvas).text((20, 20), PICTOGRAMS[name], font=loaded, embedded_color=True)
    drawn = canvas.crop(canvas.getbbox())
    square = Image.new("RGBA", (max(drawn.size), max(drawn.size)))
    square.paste(drawn, ((square.width - drawn.width) // 2, (square.height - drawn.height) // 2))
    return square


def render(scene: PictogramScene, side: int = SIDE) -> Image.Image:
    """Draw a scene large, then shrink it.

    Args:
        scene: what to draw.
        side: of the picture, in pixels.

    Returns:
        An RGB picture.
    """
    large = 4 * side
    canvas = Image.new("RGB", (large, large), BACKGROUNDS[scene.background])
    for item in scene.items:
        length = round(item.size * large)
        drawn = glyph(item.name).resize((length, length), Image.Resampling.LANCZOS)
        drawn = drawn.rotate(item.rotation, Image.Resampling.BICUBIC, expand=True)
        corner = (round(item.x * large - drawn.width / 2), round(item.y * large - drawn.height / 2))
        canvas.paste(drawn, corner, drawn)
    return canvas.resize((side, side), Image.Resampling.LANCZOS)


def with_article(name: str) -> str:
    """The name after "a" or "an"."""
    return f"{'an' if name[0] in 'aeiou' else 'a'} {name}"


def questions(scene: PictogramScene) -> Iterator[Question]:
    """All questions about a scene.

    Args:
        scene: what is asked about.

    Yields:
        What a lone pictogram is, what is in each place, where each pictogram is, and how many there are.
    """
    found = {item.place: item.name for item in scene.items}
    if len(scene.items) == 1:
        yield Question("what", "What is in the picture?", with_article(scene.items[0].name))
    for place in PLACES:
        answer = with_article(found[place]) if place in found else "nothing"
        yield Question("what_is_at", f"What is at the {place}?", answer)
    for item in scene.items:
        yield Question("where_is", f"Where is the {item.name}?", f"at the {item.place}")
    yield Question("count", "How many pictograms are there?", NUMBER_WORDS[len(scene.items)])
