"""Answers to the suite's questions from what a picture holds alone, sharing no code with those who ask."""

import re
from collections.abc import Callable

from transformers_lladav.charts import Chart
from transformers_lladav.scene_changes import SceneChange
from transformers_lladav.shape_scenes import Scene
from transformers_lladav.signs import Sign
from transformers_lladav.suite import World

ROWS, COLUMNS = ("top", "", "bottom"), ("left", "", "right")
NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven")
STEPS = {"left of": (0, -1), "right of": (0, 1), "above": (-1, 0), "below": (1, 0)}


def cells(scene: Scene) -> dict[tuple[int, int], str]:
    """Row and column to "red star", from coordinates."""
    return {(int(3 * item.y), int(3 * item.x)): f"{item.colour} {item.shape}" for item in scene.objects}


def place(cell: tuple[int, int]) -> str:
    """The name of a cell."""
    return f"{ROWS[cell[0]]} {COLUMNS[cell[1]]}".strip() or "centre"


def called(name: str | None) -> str:
    """With its article."""
    return "nothing" if name is None else f"an {name}" if name.startswith("orange") else f"a {name}"


def named(scene: Scene, name: str) -> list[str]:
    """What "shapes", "red shapes" or "crosses" are meant."""
    everything = list(cells(scene).values())
    first, _, second = name.partition(" ")
    if first == "shapes":
        return everything
    if second == "shapes":
        return [item for item in everything if item.split()[0] == first]
    assert name in ("circles", "squares", "triangles", "stars", "crosses", "rings")
    return [item for item in everything if name in (f"{item.split()[1]}s", f"{item.split()[1]}es")]


def in_prose(phrases: list[str]) -> str:
    """With commas and one "and"."""
    return re.sub(r", ([^,]*)$", r" and \1", ", ".join(phrases))


def whole_question(text: str, earlier: str | None) -> str:
    """A question that follows on another, put so that it stands alone; any other as it is."""
    if text == "What colour is it?":
        return re.sub(r"^Which shape is at (.*)\?$", r"What colour is the shape at \1?", earlier or text)
    if text == "And which shape is it?":
        return re.sub(r"^What colour is the shape at (.*)\?$", r"Which shape is at \1?", earlier or text)
    if match := re.fullmatch(r"And how many are (\w+)\?", text):
        assert earlier == "How many shapes are there?", f"{text!r} follows on {earlier!r}"
        return f"How many {match[1]} shapes are there?"
    if match := re.fullmatch(r"And the (\w+ \w+)\?", text):
        assert re.fullmatch(r"Where is the \w+ \w+\?", earlier or ""), f"{text!r} follows on {earlier!r}"
        return f"Where is the {match[1]}?"
    return text


def _colour_of_shape(scene: Scene, shape: str) -> str:
    (answer,) = (item.split()[0] for item in cells(scene).values() if item.split()[1] == shape)
    return answer


def _shape_of_colour(scene: Scene, colour: str) -> str:
    (answer,) = (item.split()[1] for item in cells(scene).values() if item.split()[0] == colour)
    return answer


def _at(scene: Scene, where: str) -> str | None:
    return {place(cell): name for cell, name in cells(scene).items()}.get(where)


def _cell_of(scene: Scene, name: str) -> tuple[int, int]:
    (cell,) = (cell for cell, item in cells(scene).items() if item == name)
    return cell


def _next_to(scene: Scene, direction: str, name: str) -> str:
    down, right = STEPS[direction]
    row, column = _cell_of(scene, name)
    assert 0 <= row + down < 3 and 0 <= column + right < 3, f"{direction} the {name} is no cell"  # noqa: PT018
    return called(cells(scene).get((row + down, column + right)))


def _holds(scene: Scene, first: str, direction: str, second: str) -> str:
    axis, sign = {"above": (0, -1), "below": (0, 1), "left of": (1, -1), "right of": (1, 1)}[direction]
    away = sign * (_cell_of(scene, first)[axis] - _cell_of(scene, second)[axis])
    assert away != 0, f"neither {first} nor {second} is {direction} the other"
    return "yes" if away > 0 else "no"


def _larger(scene: Scene, first: str, second: str) -> str:
    radii = {f"{item.colour} {item.shape}": item.radius for item in scene.objects}
    assert max(radii[first] / radii[second], radii[second] / radii[first]) >= 1.3
    return f"the {max(first, second, key=radii.__getitem__)}"


def _more(scene: Scene, first: str, second: str) -> str:
    assert first != second
    difference = len(named(scene, first)) - len(named(scene, second))
    return f"more {first if difference > 0 else second}" if difference else "equally many"


def _caption(scene: Scene) -> str:
    return in_prose([f"{called(name)} at the {place(cell)}" for cell, name in sorted(cells(scene).items())])


def _grid(scene: Scene) -> str:
    return ", ".join(cells(scene).get((row, column), "-") for row in range(3) for column in range(3))


SCENE_ANSWERS: dict[str, Callable[..., str]] = {
    r"What colour is the shape at the (.+)\?": lambda scene, where: str(_at(scene, where)).split()[0],
    r"Which shape is at the (.+)\?": lambda scene, where: str(_at(scene, where)).split()[1],
    r"What colour is the (\w+)\?": _colour_of_shape,
    r"Which shape is (\w+)\?": _shape_of_colour,
    r"What is at the (.+)\?": lambda scene, where: called(_at(scene, where)),
    r"Where is the (\w+ \w+)\?": lambda scene, name: f"at the {place(_cell_of(scene, name))}",
    r"What is directly (left of|right of|above|below) the (\w+ \w+)\?": _next_to,
    r"Is the (\w+ \w+) (left of|right of|above|below) the (\w+ \w+)\?": _holds,
    r"Is there an? (\w+ \w+)\?": lambda scene, name: "yes" if name in cells(scene).values() else "no",
    r"How many (.+) are there\?": lambda scene, name: NUMBERS[len(named(scene, name))],
    r"Which is larger, the (\w+ \w+) or the (\w+ \w+)\?": _larger,
    r"Are there more (.+) or more (.+)\?": _more,
    r"Describe the picture\.": _caption,
    r"Read the grid\.": _grid,
}


def _first(values: list[tuple[str, int]], choose: Callable[..., int]) -> str:
    (answer,) = (colour for colour, value in values if value == choose(value for _, value in values))
    return answer


CHART_ANSWERS: dict[str, Callable[..., str]] = {
    r"What is the value of the (\w+) bar\?": lambda bars, colour: str(dict(bars)[colour]),
    r"Which bar is the highest\?": lambda bars: _first(bars, max),
    r"Which bar is the lowest\?": lambda bars: _first(bars, min),
    r"What is the highest value\?": lambda bars: str(max(value for _, value in bars)),
    r"What is the lowest value\?": lambda bars: str(min(value for _, value in bars)),
    r"How much higher is the (\w+) bar than the (\w+) bar\?": lambda bars, a, b: str(dict(bars)[a] - dict(bars)[b]),
    r"Read the chart\.": lambda bars: ", ".join(f"{colour} {value}" for colour, value in bars),
}
SIGN_ANSWERS: dict[str, Callable[..., str]] = {
    r"What number is on the sign\?": lambda text: str(int(text)),
    r"What does the sign say\?": lambda text: text if text.isalpha() else "",
    r"What is the first character\?": lambda text: text[0],
    r"What is the second character\?": lambda text: text[1],
    r"What is the last character\?": lambda text: text[len(text) - 1],
}


def what_changed(before: dict[tuple[int, int], str], after: dict[tuple[int, int], str]) -> str:
    """The one thing in which two scenes differ."""
    gone, come = dict(before.items() - after.items()), dict(after.items() - before.items())
    if not gone:
        (name,) = come.values()
        return f"{called(name)} was added"
    ((old_cell, old),) = gone.items()
    if not come:
        return f"the {old} was removed"
    ((cell, new),) = come.items()
    if new == old:
        return f"the {old} moved to the {place(cell)}"
    assert (old_cell, old.split()[1]) == (cell, new.split()[1])
    return f"the {old} turned {new.split()[0]}"


def _fuller(before: dict[tuple[int, int], str], after: dict[tuple[int, int], str]) -> str:
    first, second = len(before), len(after)
    return "equally many" if first == second else "in the first" if first > second else "in the second"


CHANGE_ANSWERS: dict[str, Callable[..., str]] = {
    r"What changed\?": what_changed,
    r"In which picture are more shapes\?": _fuller,
}


def oracle(world: World, text: str, earlier: str | None = None) -> str:
    """The answer to a question.

    Args:
        world: what the pictures show.
        text: the question.
        earlier: the question of the turn before.

    Returns:
        The answer; an error where there is not exactly one.
    """
    if isinstance(world, Scene):
        text, answers, facts = whole_question(text, earlier), SCENE_ANSWERS, (world,)
    elif isinstance(world, Chart):
        answers, facts = CHART_ANSWERS, (list(zip(world.colours, world.values, strict=True)),)
    elif isinstance(world, Sign):
        answers, facts = SIGN_ANSWERS, (world.text,)
    else:
        assert isinstance(world, SceneChange)
        answers, facts = CHANGE_ANSWERS, (cells(world.before), cells(world.after))
    for pattern, answer in answers.items():
        if match := re.fullmatch(pattern, text):
            return answer(*facts, *match.groups())
    raise AssertionError(f"{text!r} is no question about a {type(world).__name__}")
