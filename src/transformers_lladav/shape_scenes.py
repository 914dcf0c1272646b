"""Coloured shapes on a 3 x 3 grid: a seed gives what is where, and how exactly it is drawn.

One to five objects stand in distinct cells, each a different (colour, shape) pair. The layout is what a scene says in
words. A stable hash puts about one layout in ten aside, so no scene of another split agrees with a training scene in
content. The pairs in `HELD_OUT_PAIRS` appear in the split "unseen_pairs" only, though their colours and their shapes
appear everywhere: they test composition.
"""

import math
import random
from dataclasses import dataclass, replace

from PIL import Image, ImageDraw

from .splits import is_held_out, split_seed

RGB = tuple[int, int, int]
Pair = tuple[str, str]

COLOURS: dict[str, RGB] = {
    "red": (216, 36, 44),
    "green": (46, 158, 72),
    "blue": (40, 92, 216),
    "yellow": (244, 212, 40),
    "purple": (134, 56, 180),
    "orange": (246, 130, 28),
    "pink": (246, 140, 186),
    "brown": (124, 76, 40),
}
SHAPES = ("circle", "square", "triangle", "star", "cross", "ring")
PLACES = ("top left", "top", "top right", "left", "centre", "right", "bottom left", "bottom", "bottom right")
GRID = 3
BACKGROUNDS: tuple[RGB, ...] = ((252, 252, 252), (222, 222, 222), (240, 232, 216), (212, 220, 230), (58, 60, 66))
NUMBER_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven")
MAX_OBJECTS = 5
MORE_OBJECTS = (6, 7)

HELD_OUT_PAIRS: frozenset[Pair] = frozenset(
    {("green", "star"), ("purple", "circle"), ("orange", "square"), ("red", "ring"), ("blue", "cross"),
     ("yellow", "triangle")}
)  # fmt: skip
PAIRS: tuple[Pair, ...] = tuple((colour, shape) for colour in COLOURS for shape in SHAPES)
SEEN_PAIRS = tuple(pair for pair in PAIRS if pair not in HELD_OUT_PAIRS)

# Lengths are fractions of the side of the picture. A shape's corners lie on the circle of its radius, and the circle
# lies inside its cell, whatever the jitter.
RADII = (0.085, 0.14)
CELL_MARGIN = 0.01
MAX_ROTATION = 14.0  # degrees
COLOUR_JITTER = 12  # per channel; at most 21 in distance, and no two names are nearer than 70
STAR_WAIST = 0.42  # inner radius of the star over its outer radius
CROSS_ARM = 0.36  # half the width of the cross's arms over its radius
RING_HOLE = 0.52  # inner radius of the ring over its outer radius
SUPERSAMPLING = 3


@dataclass(frozen=True)
class SceneObject:
    """One shape: its names, its cell, and its exact drawing, in fractions of the side of the picture."""

    colour: str
    shape: str
    row: int
    column: int
    x: float
    y: float
    radius: float
    rotation: float
    rgb: RGB

    @property
    def pair(self) -> Pair:
        """Colour and shape, for look-ups."""
        return self.colour, self.shape

    @property
    def place(self) -> str:
        """The name of the cell, such as "top left"."""
        return PLACES[GRID * self.row + self.column]


@dataclass(frozen=True)
class Scene:
    """A background and objects in reading order; (colour, shape) pairs are distinct."""

    background: RGB
    objects: tuple[SceneObject, ...]

    @property
    def layout(self) -> str:
        """Canonical text of the content, without jitter: "red star, empty, ..." for the nine cells."""
        return layout_text({item.place: item.pair for item in self.objects})


def layout_text(pairs: dict[str, Pair]) -> str:
    """The content of a scene in words.

    Args:
        pairs: colour and shape by place.

    Returns:
        The nine cells in reading order, such as "red star, empty, ...".
    """
    return ", ".join(" ".join(pairs[place]) if place in pairs else "empty" for place in PLACES)


def draw_pairs(rng: random.Random, count: int) -> list[Pair]:
    """Draw distinct seen pairs; half of the time few colours and shapes, so that they repeat.

    Args:
        rng: source of the draws.
        count: how many pairs.

    Returns:
        The pairs, in random order.
    """
    choice: list[Pair] = list(SEEN_PAIRS)
    if rng.random() < 0.5:
        colours, shapes = rng.sample(list(COLOURS), 4), rng.sample(SHAPES, 3)
        choice = [pair for pair in choice if pair[0] in colours and pair[1] in shapes]
    return rng.sample(choice, count)


def _draw_layout(rng: random.Random, split: str) -> dict[str, Pair]:
    """Draw place -> pair. The count comes first, so rejected layouts leave the counts uniform."""
    count = rng.choice(MORE_OBJECTS) if split == "more_objects" else rng.randint(1, MAX_OBJECTS)
    while True:
        pairs = draw_pairs(rng, count)
        if split == "unseen_pairs":
            pairs[0] = rng.choice(sorted(HELD_OUT_PAIRS))
        layout = dict(zip(rng.sample(PLACES, count), pairs, strict=True))
        if split in ("unseen_pairs", "more_objects") or is_held_out(layout_text(layout)) == (split != "train"):
            return layout


def draw_object(rng: random.Random, place: str, pair: Pair) -> SceneObject:
    """Draw how an object looks exactly: centre, size, rotation and shade.

    Args:
        rng: source of the draws.
        place: name of its cell.
        pair: colour and shape.

    Returns:
        The object.
    """
    row, column = divmod(PLACES.index(place), GRID)
    colour, shape = pair
    radius = rng.uniform(*RADII)
    reach = 0.5 / GRID - CELL_MARGIN - radius
    red, green, blue = (channel + rng.randint(-COLOUR_JITTER, COLOUR_JITTER) for channel in COLOURS[colour])
    return SceneObject(
        colour=colour,
        shape=shape,
        row=row,
        column=column,
        x=(column + 0.5) / GRID + rng.uniform(-reach, reach),
        y=(row + 0.5) / GRID + rng.uniform(-reach, reach),
        radius=radius,
        rotation=0.0 if shape in ("circle", "ring") else rng.uniform(-MAX_ROTATION, MAX_ROTATION),
        rgb=(min(red, 255), min(green, 255), min(blue, 255)),
    )


def make_scene(split: str, index: int) -> Scene:
    """Make the scene number `index` of a split; the same arguments give the same scene on every machine.

    Args:
        split: one of `splits.SPLIT_SEEDS`.
        index: from 0.

    Returns:
        The scene.

    Raises:
        ValueError: if there is no such split or index.
    """
    rng = random.Random(f"scene {split_seed(split, index)}")
    layout = _draw_layout(rng, split)
    background = rng.choice(BACKGROUNDS)
    return Scene(background, tuple(draw_object(rng, place, layout[place]) for place in PLACES if place in layout))


def change_scene(scene: Scene, taken_out: SceneObject | None, put_in: SceneObject | None) -> Scene:
    """The scene with an object less, more, or replaced.

    Args:
        scene: before.
        taken_out: one of its objects, or None.
        put_in: a new one, or None.

    Returns:
        The scene after.
    """
    objects = [item for item in scene.objects if item != taken_out] + ([put_in] if put_in else [])
    return replace(scene, objects=tuple(sorted(objects, key=lambda item: (item.row, item.column))))


def _outline(item: SceneObject) -> list[tuple[float, float]]:
    """Return the corners of a square, triangle, star or cross, on a picture of side 1."""
    if item.shape == "cross":
        return _cross(item)
    corners, first, waist = {"square": (4, 45, 1.0), "triangle": (3, 0, 1.0), "star": (10, 0, STAR_WAIST)}[item.shape]
    points = []
    for corner in range(corners):
        angle = math.radians(item.rotation + first + 360 * corner / corners - 90)
        radius = item.radius * (waist if corner % 2 else 1.0)
        points.append((item.x + radius * math.cos(angle), item.y + radius * math.sin(angle)))
    return points


def _cross(item: SceneObject) -> list[tuple[float, float]]:
    """Return the twelve corners of a cross, one arm after the other."""
    turn, reach = math.radians(item.rotation), math.sqrt(1 - CROSS_ARM**2)
    points = []
    for arm in range(4):
        cosine, sine = math.cos(turn + arm * math.pi / 2), math.sin(turn + arm * math.pi / 2)
        for along, across in ((CROSS_ARM, -CROSS_ARM), (reach, -CROSS_ARM), (reach, CROSS_ARM)):
            x, y = along * cosine - across * sine, along * sine + across * cosine
            points.append((item.x + item.radius * x, item.y + item.radius * y))
    return points


def render_scene(scene: Scene, size: int) -> Image.Image:
    """Draw a scene with smooth edges.

    Args:
        scene: what to draw.
        size: pixels along one side.

    Returns:
        An RGB picture.
    """
    side = SUPERSAMPLING * size
    canvas = Image.new("RGB", (side, side), scene.background)
    draw = ImageDraw.Draw(canvas)
    for item in scene.objects:
        if item.shape in ("circle", "ring"):
            x, y, radius = side * item.x, side * item.y, side * item.radius
            draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=item.rgb)
            if item.shape == "ring":
                radius *= RING_HOLE
                draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=scene.background)
        else:
            draw.polygon([(side * x, side * y) for x, y in _outline(item)], fill=item.rgb)
    return canvas.reduce(SUPERSAMPLING)
