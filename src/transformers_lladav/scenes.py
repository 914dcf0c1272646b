"""A tiny visual world: a seed gives a picture, and questions whose answers are known.

A scene holds one to three coloured shapes in distinct cells of a 2 x 2 grid on a plain background. Everything
follows from the seed, so a data set is a range of integers and needs no files:

    split          seeds                 layouts
    validation     0 .. 99_999           held out
    test           100_000 .. 199_999    held out
    unseen_pairs   200_000 .. 299_999    any, with exactly one object of `HELD_OUT_PAIRS`
    demo           300_000 .. 399_999    held out
    train          1_000_000 .. 2^31-1   all the others

The layout is what a scene says in words: its (place, colour, shape) triples. A stable hash puts about one layout in
ten aside, so no test scene agrees with a training scene in content, and no picture is ever seen twice. The pairs
in `HELD_OUT_PAIRS` appear in no other split, though their colours and their shapes do: they test composition.

    scene = make_scene("train", 0)
    picture = render(scene)                                    # PIL image, RGB, 64 x 64
    question = ask(scene, "caption", random.Random(0))         # .text, .answer
"""

import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b

from PIL import Image, ImageDraw

from .contact_sheets import SheetRow as SheetRow
from .contact_sheets import contact_sheet as contact_sheet

RGB = tuple[int, int, int]
Pair = tuple[str, str]

COLOURS: dict[str, RGB] = {
    "red": (216, 44, 48),
    "green": (52, 160, 76),
    "blue": (44, 96, 212),
    "yellow": (246, 208, 48),
    "purple": (140, 64, 186),
    "orange": (244, 132, 32),
}
SHAPES = ("circle", "square", "triangle", "star")
PLACES = ("top left", "top right", "bottom left", "bottom right")
BACKGROUNDS: dict[str, RGB] = {
    "white": (252, 252, 252),
    "light grey": (222, 222, 222),
    "beige": (240, 232, 216),
    "light blue-grey": (212, 220, 230),
    "dark grey": (58, 60, 66),
}
NUMBER_WORDS = ("one", "two", "three")
MAX_OBJECTS = len(NUMBER_WORDS)

HELD_OUT_PAIRS: frozenset[Pair] = frozenset({("green", "star"), ("purple", "circle"), ("orange", "square")})
PAIRS: tuple[Pair, ...] = tuple((colour, shape) for colour in COLOURS for shape in SHAPES)
SEEN_PAIRS = tuple(pair for pair in PAIRS if pair not in HELD_OUT_PAIRS)

SPLIT_SEEDS = {
    "validation": range(100_000),
    "test": range(100_000, 200_000),
    "unseen_pairs": range(200_000, 300_000),
    "demo": range(300_000, 400_000),
    "train": range(1_000_000, 2**31),
}

# Lengths are fractions of the side of the picture. A shape's corners lie on the circle of its radius, and the circle
# lies inside its cell, whatever the jitter.
RADII = (0.13, 0.21)
CELL_MARGIN = 0.015
MAX_ROTATION = 15.0  # degrees
COLOUR_JITTER = 12  # per channel; at most 21 in distance, and no two names are nearer than 70
STAR_WAIST = 0.45  # inner radius of the star over its outer radius
SUPERSAMPLING = 4


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
        return PLACES[2 * self.row + self.column]


@dataclass(frozen=True)
class Scene:
    """A background and one to three objects in reading order; (colour, shape) pairs are distinct."""

    seed: int
    background: RGB
    objects: tuple[SceneObject, ...]

    @property
    def layout(self) -> str:
        """Canonical text of the content, without jitter: "red star, empty, empty, blue circle"."""
        return _grid_text({item.place: item.pair for item in self.objects})


@dataclass(frozen=True)
class Question:
    """A question about a scene and its one right answer, lower-case and without a final dot."""

    kind: str
    text: str
    answer: str


# Seeds and layouts


def split_seed(split: str, index: int) -> int:
    """Return the seed of the scene number `index` of a split; every split counts from 0."""
    if split not in SPLIT_SEEDS:
        raise ValueError(f"split={split!r} is not a split of the scenes; pass one of {', '.join(SPLIT_SEEDS)}")
    seeds = SPLIT_SEEDS[split]
    if not 0 <= index < len(seeds):
        raise ValueError(
            f"index={index} is outside the split {split!r} of {len(seeds)} scenes; pass an index in [0, {len(seeds)})"
        )
    return seeds[index]


def is_held_out(layout: str) -> bool:
    """Tell whether a layout is kept from training: one in ten, by a hash that no Python version changes."""
    return int.from_bytes(blake2b(layout.encode(), digest_size=8).digest(), "big") % 10 == 0


def _grid_text(pairs: dict[str, Pair]) -> str:
    return ", ".join(" ".join(pairs[place]) if place in pairs else "empty" for place in PLACES)


def _draw_layout(rng: random.Random, split: str) -> dict[str, Pair]:
    """Draw place -> pair. The count comes first, so rejected layouts leave the counts uniform."""
    count = rng.randint(1, MAX_OBJECTS)
    while True:
        places = rng.sample(PLACES, count)
        if split == "unseen_pairs":
            return dict(
                zip(places, [rng.choice(sorted(HELD_OUT_PAIRS)), *rng.sample(SEEN_PAIRS, count - 1)], strict=True)
            )
        layout = dict(zip(places, rng.sample(SEEN_PAIRS, count), strict=True))
        if is_held_out(_grid_text(layout)) == (split != "train"):
            return layout


def _draw_object(rng: random.Random, place: str, pair: Pair) -> SceneObject:
    row, column = divmod(PLACES.index(place), 2)
    colour, shape = pair
    radius = rng.uniform(*RADII)
    reach = 0.25 - CELL_MARGIN - radius
    red, green, blue = (channel + rng.randint(-COLOUR_JITTER, COLOUR_JITTER) for channel in COLOURS[colour])
    return SceneObject(
        colour=colour,
        shape=shape,
        row=row,
        column=column,
        x=0.25 + 0.5 * column + rng.uniform(-reach, reach),
        y=0.25 + 0.5 * row + rng.uniform(-reach, reach),
        radius=radius,
        rotation=0.0 if shape == "circle" else rng.uniform(-MAX_ROTATION, MAX_ROTATION),
        rgb=(min(red, 255), min(green, 255), min(blue, 255)),
    )


def make_scene(split: str, index: int) -> Scene:
    """Make the scene number `index` of a split; the same arguments give the same scene on every machine."""
    seed = split_seed(split, index)
    rng = random.Random(seed)
    layout = _draw_layout(rng, split)
    return Scene(
        seed=seed,
        background=rng.choice(list(BACKGROUNDS.values())),
        objects=tuple(_draw_object(rng, place, layout[place]) for place in PLACES if place in layout),
    )


# Pictures


def _outline(item: SceneObject) -> list[tuple[float, float]]:
    """Return the corners of a square, triangle or star, on a picture of side 1."""
    corners, first, waist = {"square": (4, 45, 1.0), "triangle": (3, 0, 1.0), "star": (10, 0, STAR_WAIST)}[item.shape]
    points = []
    for corner in range(corners):
        angle = math.radians(item.rotation + first + 360 * corner / corners - 90)
        radius = item.radius * (waist if corner % 2 else 1.0)
        points.append((item.x + radius * math.cos(angle), item.y + radius * math.sin(angle)))
    return points


def render(scene: Scene, size: int = 64) -> Image.Image:
    """Draw a scene as an RGB picture of `size` x `size` pixels, with smooth edges."""
    side = SUPERSAMPLING * size
    canvas = Image.new("RGB", (side, side), scene.background)
    draw = ImageDraw.Draw(canvas)
    for item in scene.objects:
        if item.shape == "circle":
            left, top, right, bottom = (
                side * (centre + sign * item.radius) for sign in (-1, 1) for centre in (item.x, item.y)
            )
            draw.ellipse((left, top, right, bottom), fill=item.rgb)
        else:
            draw.polygon([(side * x, side * y) for x, y in _outline(item)], fill=item.rgb)
    return canvas.resize((size, size), Image.Resampling.LANCZOS)


# Questions


def _with_article(pair: Pair) -> str:
    article = "an" if pair[0][0] in "aeiou" else "a"
    return f"{article} {pair[0]} {pair[1]}"


def _caption(scene: Scene) -> str:
    phrases = [f"{_with_article(item.pair)} at the {item.place}" for item in scene.objects]
    return " and ".join(filter(None, [", ".join(phrases[:-1]), phrases[-1]]))


def _subject(objects: Sequence[SceneObject], rng: random.Random) -> SceneObject:
    """Choose what to ask about: the object of an unseen pair if there is one, since its scene is there to test it."""
    return rng.choice([item for item in objects if item.pair in HELD_OUT_PAIRS] or objects)


def _ask_colour(scene: Scene, rng: random.Random) -> Question | None:
    shapes = [item.shape for item in scene.objects]
    unique = [item for item in scene.objects if shapes.count(item.shape) == 1]
    if not unique:
        return None
    item = _subject(unique, rng)
    return Question("colour", f"What colour is the {item.shape}?", item.colour)


def _ask_shape(scene: Scene, rng: random.Random) -> Question | None:
    colours = [item.colour for item in scene.objects]
    unique = [item for item in scene.objects if colours.count(item.colour) == 1]
    if not unique:
        return None
    item = _subject(unique, rng)
    return Question("shape", f"Which shape is {item.colour}?", item.shape)


def _ask_what_is_at(scene: Scene, rng: random.Random) -> Question:
    """One question in four is about an empty place; there always is one, as a scene has at most three objects."""
    item = _subject(scene.objects, rng)
    place, answer = item.place, _with_article(item.pair)
    if rng.random() < 0.25:
        taken = {item.place for item in scene.objects}
        place, answer = rng.choice([place for place in PLACES if place not in taken]), "nothing"
    return Question("what_is_at", f"What is at the {place}?", answer)


def _ask_where_is(scene: Scene, rng: random.Random) -> Question:
    item = _subject(scene.objects, rng)
    return Question("where_is", f"Where is the {item.colour} {item.shape}?", f"at the {item.place}")


def _ask_count(scene: Scene, rng: random.Random) -> Question:
    return Question("count", "How many shapes are there?", NUMBER_WORDS[len(scene.objects) - 1])


def _ask_existence(scene: Scene, rng: random.Random) -> Question:
    """Ask about a present or an absent pair, evenly; half of the absent ones share a colour or a shape with the scene.

    Scenes of seen pairs never ask for a held-out pair: its answer would always be "no", and be learned.
    """
    if rng.random() < 0.5:
        item = _subject(scene.objects, rng)
        return Question("existence", f"Is there {_with_article(item.pair)}?", "yes")
    present = {item.pair for item in scene.objects}
    colours, shapes = {colour for colour, _ in present}, {shape for _, shape in present}
    similar = rng.random() < 0.5
    absent = [
        (colour, shape)
        for colour, shape in (SEEN_PAIRS if present.isdisjoint(HELD_OUT_PAIRS) else PAIRS)
        if (colour, shape) not in present and (colour in colours or shape in shapes) == similar
    ]
    return Question("existence", f"Is there {_with_article(rng.choice(absent))}?", "no")


def _ask_caption(scene: Scene, rng: random.Random) -> Question:
    return Question("caption", "Describe the picture.", _caption(scene))


def _ask_grid(scene: Scene, rng: random.Random) -> Question:
    return Question("grid", "Read the grid.", scene.layout)


_ASKERS: dict[str, Callable[[Scene, random.Random], Question | None]] = {
    "colour": _ask_colour,
    "shape": _ask_shape,
    "what_is_at": _ask_what_is_at,
    "where_is": _ask_where_is,
    "count": _ask_count,
    "existence": _ask_existence,
    "caption": _ask_caption,
    "grid": _ask_grid,
}
QUESTION_KINDS = tuple(_ASKERS)
EVALUATED_KINDS = tuple(kind for kind in QUESTION_KINDS if kind != "grid")
TARGET_KINDS = tuple(kind for kind in EVALUATED_KINDS if kind != "existence")


def ask(scene: Scene, kind: str, rng: random.Random) -> Question | None:
    """Ask one question of a kind, or return None where it has no single answer, as "the star" among two stars."""
    if kind not in _ASKERS:
        raise ValueError(f"kind={kind!r} is not a kind of question; pass one of {', '.join(QUESTION_KINDS)}")
    return _ASKERS[kind](scene, rng)


def questions(scene: Scene, rng: random.Random) -> list[Question]:
    """Ask one question of every kind that the scene allows."""
    return [question for kind in QUESTION_KINDS if (question := ask(scene, kind, rng)) is not None]


def evaluation_set(split: str, count: int) -> list[tuple[Scene, Question]]:
    """Return the first `count` examples of a split: one question per scene, the evaluated kinds in turn.

    A scene that does not allow the kind whose turn it is is passed over, so shorter sets are prefixes of longer ones.
    """
    examples: list[tuple[Scene, Question]] = []
    index = 0
    while len(examples) < count:
        scene = make_scene(split, index)
        # Seeded by text: the stream of the seed itself has drawn the scene.
        rng = random.Random(f"question {scene.seed}")
        question = ask(scene, EVALUATED_KINDS[len(examples) % len(EVALUATED_KINDS)], rng)
        if question is not None:
            examples.append((scene, question))
        index += 1
    return examples


def all_texts(sampled_scenes: int = 1000) -> Iterator[str]:
    """Yield every question and short answer once, and the captions and grids of some training scenes."""
    yield from (f"What colour is the {shape}?" for shape in SHAPES)
    yield from (f"Which shape is {colour}?" for colour in COLOURS)
    yield from (f"What is at the {place}?" for place in PLACES)
    yield from (f"Where is the {colour} {shape}?" for colour, shape in PAIRS)
    yield from (f"Is there {_with_article(pair)}?" for pair in PAIRS)
    yield from ("How many shapes are there?", "Describe the picture.", "Read the grid.")
    yield from (*COLOURS, *SHAPES, *NUMBER_WORDS, "nothing", "yes", "no")
    yield from (f"at the {place}" for place in PLACES)
    yield from (_with_article(pair) for pair in PAIRS)
    scenes = [make_scene("train", index) for index in range(sampled_scenes)]
    yield from dict.fromkeys(text for scene in scenes for text in (_caption(scene), scene.layout))
