"""Questions about scenes of shapes, each with one right answer: lower-case, without a final dot."""

import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from .shape_scenes import (
    COLOURS,
    GRID,
    HELD_OUT_PAIRS,
    NUMBER_WORDS,
    PAIRS,
    PLACES,
    SEEN_PAIRS,
    SHAPES,
    Pair,
    Scene,
    SceneObject,
)

DIRECTIONS = {"left of": (0, -1), "right of": (0, 1), "above": (-1, 0), "below": (1, 0)}
RELATIONS_TOLD = 5
LARGER = 1.3  # how many times the radius of the smaller, at least, where sizes are compared


@dataclass(frozen=True)
class Question:
    """A question and its one right answer.

    Attributes:
        kind: what it tests.
        text: the question.
        answer: to it.
        before: question and answer of the turns that it follows on, as "it" needs one.
        reasoning: what leads to the answer, where there is something to list.
    """

    kind: str
    text: str
    answer: str
    before: tuple[tuple[str, str], ...] = ()
    reasoning: str | None = None


Asker = Callable[[Scene, random.Random], Question | None]


def with_article(pair: Pair) -> str:
    """A pair as it is called: "an orange star"."""
    article = "an" if pair[0][0] in "aeiou" else "a"
    return f"{article} {pair[0]} {pair[1]}"


def caption(scene: Scene) -> str:
    """All that a scene holds, in a sentence."""
    return enumerated(f"{with_article(item.pair)} at the {item.place}" for item in scene.objects)


def enumerated(phrases: Iterable[str]) -> str:
    """Join phrases as in prose: "a, b and c"."""
    *first, last = phrases
    return " and ".join(filter(None, [", ".join(first), last]))


def reading(scene: Scene) -> str:
    """The nine cells in reading order, "-" where nothing is."""
    return scene.layout.replace("empty", "-")


def facts(scene: Scene, rng: random.Random) -> str:
    """What is where, in any order: a text to learn from, in which a hidden word follows from the others of its fact.

    Args:
        scene: what it is about.
        rng: chooses the order.

    Returns:
        Such as "red star top left blue ring right": nothing but three words a fact. With commas, which can be hidden
        as well, the same takes several times as long to learn.
    """
    return " ".join(f"{' '.join(item.pair)} {item.place}" for item in rng.sample(scene.objects, len(scene.objects)))


def relations(scene: Scene, rng: random.Random) -> str:
    """What stands how to what: a text like `facts`, in which a hidden word follows from two looks at the picture.

    Args:
        scene: what it is about.
        rng: chooses what is told.

    Returns:
        Such as "red star left blue ring centre", a fact after what is left of it: six words for each of five
        relations at most, those of neighbours first. The facts where a lone object has none.
    """
    found = []
    for item in scene.objects:
        for other in scene.objects:
            row, column = item.row - other.row, item.column - other.column
            holding = [name for name, (down, right) in DIRECTIONS.items() if row * down + column * right > 0]
            if holding:
                name = rng.choice(holding).removesuffix(" of")
                told = f"{' '.join(item.pair)} {name} {' '.join(other.pair)} {other.place}"
                found.append((abs(row) + abs(column) > 1, rng.random(), told))
    return " ".join(told for *_, told in sorted(found)[:RELATIONS_TOLD]) or facts(scene, rng)


def _listing(objects: Iterable[SceneObject]) -> str:
    return ", ".join(" ".join(item.pair) for item in objects) or "nothing"


def _subject(objects: Sequence[SceneObject], rng: random.Random) -> SceneObject:
    """Choose what to ask about: the object of an unseen pair if there is one, since its scene is there to test it."""
    return rng.choice([item for item in objects if item.pair in HELD_OUT_PAIRS] or objects)


def _unique(scene: Scene, name: str) -> list[SceneObject]:
    """The objects whose colour, or shape, no other has."""
    names = [getattr(item, name) for item in scene.objects]
    return [item for item in scene.objects if names.count(getattr(item, name)) == 1]


def _ask_colour(scene: Scene, rng: random.Random) -> Question:
    unique = _unique(scene, "shape")
    if unique and rng.random() < 0.5:
        item = _subject(unique, rng)
        return Question("colour", f"What colour is the {item.shape}?", item.colour)
    item = _subject(scene.objects, rng)
    return Question("colour", f"What colour is the shape at the {item.place}?", item.colour)


def _ask_shape(scene: Scene, rng: random.Random) -> Question:
    unique = _unique(scene, "colour")
    if unique and rng.random() < 0.5:
        item = _subject(unique, rng)
        return Question("shape", f"Which shape is {item.colour}?", item.shape)
    item = _subject(scene.objects, rng)
    return Question("shape", f"Which shape is at the {item.place}?", item.shape)


def _ask_position(scene: Scene, rng: random.Random) -> Question:
    """Half of the questions give a pair, half a place; of those, one in four is about an empty place."""
    item = _subject(scene.objects, rng)
    if rng.random() < 0.5:
        return Question("position", f"Where is the {item.colour} {item.shape}?", f"at the {item.place}")
    place, answer = item.place, with_article(item.pair)
    if rng.random() < 0.25:
        place, answer = rng.choice([p for p in PLACES if p not in {o.place for o in scene.objects}]), "nothing"
    return Question("position", f"What is at the {place}?", answer)


def _neighbour(scene: Scene, item: SceneObject, direction: str) -> SceneObject | None:
    row, column = (a + b for a, b in zip((item.row, item.column), DIRECTIONS[direction], strict=True))
    return next((other for other in scene.objects if (other.row, other.column) == (row, column)), None)


def _ask_relation(scene: Scene, rng: random.Random) -> Question | None:
    """Half ask for the neighbour in a direction, half whether a relation holds.

    Of the first, one in four is about a cell where nothing is, if any object has a neighbour; else all are.
    """
    if rng.random() < 0.5:
        found = [
            (item, direction, _neighbour(scene, item, direction))
            for item in scene.objects
            for direction, (down, right) in DIRECTIONS.items()
            if 0 <= item.row + down < GRID and 0 <= item.column + right < GRID
        ]
        wanted = rng.random() < 0.75
        item, direction, other = rng.choice([case for case in found if (case[2] is not None) == wanted] or found)
        answer = "nothing" if other is None else with_article(other.pair)
        return Question("relation", f"What is directly {direction} the {' '.join(item.pair)}?", answer)
    direction = rng.choice(list(DIRECTIONS))
    down, right = DIRECTIONS[direction]
    holds = [
        (a, b)
        for a in scene.objects
        for b in scene.objects
        if (a.row - b.row) * down + (a.column - b.column) * right > 0
    ]
    if not holds:
        return None
    first, second = rng.choice(holds)
    answer = rng.choice(("yes", "no"))
    if answer == "no":
        first, second = second, first
    return Question("relation", f"Is the {' '.join(first.pair)} {direction} the {' '.join(second.pair)}?", answer)


def _ask_existence(scene: Scene, rng: random.Random) -> Question:
    """Ask about a present or an absent pair, evenly; half of the absent ones share a colour or a shape with the scene.

    Scenes of seen pairs never ask for a held-out pair: its answer would always be "no", and be learned.
    """
    if rng.random() < 0.5:
        item = _subject(scene.objects, rng)
        return Question("existence", f"Is there {with_article(item.pair)}?", "yes")
    present = {item.pair for item in scene.objects}
    colours, shapes = {colour for colour, _ in present}, {shape for _, shape in present}
    similar = rng.random() < 0.5
    known = SEEN_PAIRS if present.isdisjoint(HELD_OUT_PAIRS) else PAIRS
    absent = [pair for pair in known if pair not in present]
    fitting = [pair for pair in absent if (pair[0] in colours or pair[1] in shapes) == similar]
    return Question("existence", f"Is there {with_article(rng.choice(fitting or absent))}?", "no")


def _counted(scene: Scene, name: str) -> list[SceneObject]:
    """The objects of a colour, of a shape (in the plural), or all ("shapes")."""
    return [item for item in scene.objects if name in ("shapes", f"{item.colour} shapes", _plural(item.shape))]


def _plural(shape: str) -> str:
    return f"{shape}es" if shape == "cross" else f"{shape}s"


def _ask_count(scene: Scene, rng: random.Random) -> Question:
    """Half ask for all objects; four in ten for a colour or a shape that is there, one in ten for any."""
    draw = rng.random()
    name = "shapes"
    if draw > 0.5:
        item = rng.choice(scene.objects)
        colour, shape = item.colour, item.shape
        if draw > 0.9:
            colour, shape = rng.choice(list(COLOURS)), rng.choice(SHAPES)
        name = rng.choice((f"{colour} shapes", _plural(shape)))
    counted = _counted(scene, name)
    return Question("count", f"How many {name} are there?", NUMBER_WORDS[len(counted)], reasoning=_listing(counted))


def _ask_comparison(scene: Scene, rng: random.Random) -> Question:
    """Half compare the sizes of two objects of a shape, where they differ clearly; the others numbers of objects."""
    alike = [(a, b) for a in scene.objects for b in scene.objects if a.shape == b.shape]
    clear = [(a, b) for a, b in alike if a.radius >= LARGER * b.radius]
    if clear and rng.random() < 0.5:
        larger, smaller = rng.choice(clear)
        shown = [" ".join(item.pair) for item in rng.sample((larger, smaller), 2)]
        return Question(
            "comparison", f"Which is larger, the {shown[0]} or the {shown[1]}?", f"the {' '.join(larger.pair)}"
        )
    item = rng.choice(scene.objects)
    if rng.random() < 0.5:
        present = sorted({o.colour for o in scene.objects} - {item.colour})
        names = [f"{item.colour} shapes", f"{rng.choice(present or sorted(set(COLOURS) - {item.colour}))} shapes"]
    else:
        present = sorted({o.shape for o in scene.objects} - {item.shape})
        names = [_plural(item.shape), _plural(rng.choice(present or sorted(set(SHAPES) - {item.shape})))]
    rng.shuffle(names)
    counted = [_counted(scene, name) for name in names]
    first, second = map(len, counted)
    answer = "equally many" if first == second else f"more {names[0] if first > second else names[1]}"
    reasoning = "; ".join(f"{_listing(objects)}: {NUMBER_WORDS[len(objects)]}" for objects in counted)
    return Question("comparison", f"Are there more {names[0]} or more {names[1]}?", answer, reasoning=reasoning)


def _ask_caption(scene: Scene, rng: random.Random) -> Question:
    return Question("caption", "Describe the picture.", caption(scene))


def _ask_reading(scene: Scene, rng: random.Random) -> Question:
    return Question("reading", "Read the grid.", reading(scene))


def _ask_dialogue(scene: Scene, rng: random.Random) -> Question:
    """A question that cannot be understood without the turn before it."""
    item = _subject(scene.objects, rng)
    pair, place = " ".join(item.pair), item.place
    draw = rng.randrange(4)
    if draw == 0:
        before = (f"Which shape is at the {place}?", item.shape)
        return Question("dialogue", "What colour is it?", item.colour, (before,))
    if draw == 1:
        before = (f"What colour is the shape at the {place}?", item.colour)
        return Question("dialogue", "And which shape is it?", item.shape, (before,))
    if draw == 2:
        others = [other for other in scene.objects if other != item]
        if others:
            other = _subject(others, rng)
            before = (f"Where is the {pair}?", f"at the {place}")
            return Question("dialogue", f"And the {' '.join(other.pair)}?", f"at the {other.place}", (before,))
    before = ("How many shapes are there?", NUMBER_WORDS[len(scene.objects)])
    counted = _counted(scene, f"{item.colour} shapes")
    return Question("dialogue", f"And how many are {item.colour}?", NUMBER_WORDS[len(counted)], (before,))


ASKERS: dict[str, Asker] = {
    "colour": _ask_colour,
    "shape": _ask_shape,
    "position": _ask_position,
    "relation": _ask_relation,
    "existence": _ask_existence,
    "count": _ask_count,
    "comparison": _ask_comparison,
    "caption": _ask_caption,
    "dialogue": _ask_dialogue,
    "reading": _ask_reading,
}
