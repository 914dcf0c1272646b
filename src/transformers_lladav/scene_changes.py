"""Two pictures that differ in one thing: what changed?"""

import random
from dataclasses import dataclass

from .scene_questions import Question, with_article
from .shape_scenes import (
    COLOURS,
    HELD_OUT_PAIRS,
    MAX_OBJECTS,
    PLACES,
    SEEN_PAIRS,
    Scene,
    change_scene,
    draw_object,
    make_scene,
)
from .splits import is_held_out, split_seed

CHANGES = ("added", "removed", "moved", "turned")


@dataclass(frozen=True)
class SceneChange:
    """A scene before and after.

    Attributes:
        before: the first picture.
        after: the second.
        answer: what happened, in words.
    """

    before: Scene
    after: Scene
    answer: str


def make_change(split: str, index: int) -> SceneChange:
    """Make the change number `index` of a split: to the scene of that number, by draws of its own.

    In the train split the second picture shows no layout that is held out either.

    Args:
        split: one of `splits.SPLIT_SEEDS`.
        index: from 0.

    Returns:
        The change; one that the scene allows.

    Raises:
        ValueError: if there is no such split or index.
    """
    scene = make_scene(split, index)
    rng = random.Random(f"change {split_seed(split, index)}")
    while True:
        change = _draw_change(scene, rng)
        if split != "train" or not is_held_out(change.after.layout):
            return change


def _draw_change(scene: Scene, rng: random.Random) -> SceneChange:
    """Draw one of the changes that a scene allows."""
    present = {item.pair for item in scene.objects}
    free = [place for place in PLACES if place not in {item.place for item in scene.objects}]
    item = rng.choice(scene.objects)
    name = " ".join(item.pair)
    # A picture without any object is no scene, and more than five are in no training scene.
    impossible = {1: "removed", MAX_OBJECTS: "added"}.get(min(len(scene.objects), MAX_OBJECTS))
    change = rng.choice([name for name in CHANGES if name != impossible])
    if change == "added":
        new = draw_object(rng, rng.choice(free), rng.choice([pair for pair in SEEN_PAIRS if pair not in present]))
        return SceneChange(scene, change_scene(scene, None, new), f"{with_article(new.pair)} was added")
    if change == "removed":
        return SceneChange(scene, change_scene(scene, item, None), f"the {name} was removed")
    if change == "moved":
        new = draw_object(rng, rng.choice(free), item.pair)
        return SceneChange(scene, change_scene(scene, item, new), f"the {name} moved to the {new.place}")
    colours = [c for c in COLOURS if (c, item.shape) not in present | HELD_OUT_PAIRS]
    new = draw_object(rng, item.place, (rng.choice(colours), item.shape))
    return SceneChange(scene, change_scene(scene, item, new), f"the {name} turned {new.colour}")


def ask_change(change: SceneChange, rng: random.Random) -> Question:
    """Ask what changed."""
    return Question("change", "What changed?", change.answer)


def ask_fuller(change: SceneChange, rng: random.Random) -> Question:
    """Ask in which picture more objects are."""
    first, second = len(change.before.objects), len(change.after.objects)
    answer = "equally many" if first == second else f"in the {'first' if first > second else 'second'}"
    return Question("fuller", "In which picture are more shapes?", answer)
