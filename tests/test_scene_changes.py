"""Changes: the second picture differs from the first in exactly what the answer says."""

import math
import random
from collections import Counter

import pytest

from scene_oracle import cells, oracle, what_changed
from transformers_lladav.scene_changes import CHANGES, ask_change, ask_fuller, make_change
from transformers_lladav.shape_scenes import HELD_OUT_PAIRS, make_scene
from transformers_lladav.splits import is_held_out

COUNT = 1500
SPLITS = ("train", "test", "demo")
ALL = {split: [make_change(split, index) for index in range(COUNT)] for split in SPLITS}
KINDS = {"was added": "added", "was removed": "removed", " moved to the ": "moved", " turned ": "turned"}


def kind_of(answer: str) -> str:
    (kind,) = (kind for words, kind in KINDS.items() if words in answer)
    return kind


@pytest.mark.parametrize("split", SPLITS)
def test_the_pictures_differ_in_what_the_answer_says_and_in_nothing_else(split: str) -> None:
    for index, change in enumerate(ALL[split]):
        assert change.before == make_scene(split, index)
        assert change.answer == what_changed(cells(change.before), cells(change.after))
        kept = set(change.before.objects) & set(change.after.objects)
        # Whatever is not part of the change is drawn as before, to the pixel.
        assert len(kept) == min(len(change.before.objects), len(change.after.objects)) - (
            kind_of(change.answer) in ("moved", "turned")
        )
        assert change.after.background == change.before.background
        assert 1 <= len(change.after.objects) <= 5
        assert [(o.row, o.column) for o in change.after.objects] == sorted(cells(change.after))
        assert len({item.pair for item in change.after.objects}) == len(change.after.objects)


def test_training_never_shows_a_held_out_layout_or_pair() -> None:
    tested = {change.before.layout for split in ("test", "demo") for change in ALL[split]}
    for change in ALL["train"]:
        for scene in (change.before, change.after):
            assert not is_held_out(scene.layout)
            assert scene.layout not in tested
            assert HELD_OUT_PAIRS.isdisjoint(item.pair for item in scene.objects)
        assert not any(f"{colour} {shape}" in change.answer for colour, shape in HELD_OUT_PAIRS)
        if " turned " in change.answer:
            (shape,) = (item.shape for item in set(change.after.objects) - set(change.before.objects))
            assert (change.answer.split()[-1], shape) not in HELD_OUT_PAIRS


@pytest.mark.parametrize("split", SPLITS)
def test_changes_are_as_frequent_as_scenes_allow(split: str) -> None:
    """Two to four objects allow all four; a single one cannot be removed, and to five none is added."""
    drawn = Counter((len(c.before.objects), kind_of(c.answer)) for c in ALL[split])
    for objects in range(1, 6):
        allowed = set(CHANGES) - {1: {"removed"}, 5: {"added"}}.get(objects, set())
        counts = {kind: drawn[objects, kind] for kind in CHANGES}
        total, share = sum(counts.values()), 1 / len(allowed)
        for kind in CHANGES:
            expected = total * share if kind in allowed else 0
            deviation = math.sqrt(total * share * (1 - share)) if kind in allowed else 0
            assert abs(counts[kind] - expected) <= 4 * deviation


def test_objects_move_to_every_place() -> None:
    places = Counter(c.answer.split(" to the ")[1] for c in ALL["train"] if " moved " in c.answer)
    assert len(places) == 9
    assert max(places.values()) < 2 * min(places.values())


@pytest.mark.parametrize("split", SPLITS)
def test_questions_are_answered_by_the_pictures(split: str) -> None:
    rng = random.Random(0)
    for change in ALL[split]:
        for question in (ask_change(change, rng), ask_fuller(change, rng)):
            assert question.answer == oracle(change, question.text)


def test_more_objects_are_in_the_first_picture_as_often_as_in_the_second() -> None:
    answers = Counter(ask_fuller(change, random.Random(0)).answer for change in ALL["test"])
    first, second = answers["in the first"], answers["in the second"]
    assert abs(first - second) < 4 * math.sqrt(first + second)
    assert answers["equally many"] < 0.6 * COUNT


def test_the_same_number_gives_the_same_change() -> None:
    assert make_change("test", 3) == ALL["test"][3] != ALL["test"][4]
    with pytest.raises(ValueError, match="split='dev'"):
        make_change("dev", 0)
