"""Questions about scenes: every answer computed a second time, and none that can be guessed."""

import random
import re
from collections import Counter
from dataclasses import replace

import pytest

from scene_oracle import named, oracle
from transformers_lladav.scene_questions import (
    ASKERS,
    LARGER,
    RELATIONS_TOLD,
    Question,
    caption,
    enumerated,
    facts,
    reading,
    relations,
    with_article,
)
from transformers_lladav.shape_scenes import (
    BACKGROUNDS,
    COLOURS,
    HELD_OUT_PAIRS,
    NUMBER_WORDS,
    PLACES,
    SHAPES,
    Scene,
    draw_object,
    make_scene,
)

COUNT = 500
SPLITS = ("train", "test", "unseen_pairs", "more_objects")
SCENES = {split: [make_scene(split, index) for index in range(COUNT)] for split in SPLITS}
ASKED: dict[tuple[str, str], list[tuple[Scene, Question]]] = {
    (split, kind): [
        (scene, question)
        for number, scene in enumerate(scenes)
        if (question := ask(scene, random.Random(f"{kind} {number}"))) is not None
    ]
    for split, scenes in SCENES.items()
    for kind, ask in ASKERS.items()
}


def shares(split: str, kind: str, start: str = "") -> Counter[str]:
    """How often each answer is right to questions that begin in a way."""
    return Counter(question.answer for _, question in ASKED[split, kind] if question.text.startswith(start))


def place_scene(**pairs: tuple[str, str]) -> Scene:
    """A scene with pairs at places, whose names have underscores here."""
    rng = random.Random(0)
    places = {place.replace("_", " "): pair for place, pair in pairs.items()}
    return Scene(BACKGROUNDS[0], tuple(draw_object(rng, place, pair) for place, pair in places.items()))


# Answers


@pytest.mark.parametrize("kind", ASKERS)
def test_every_answer_follows_from_the_scene(kind: str) -> None:
    for split in SPLITS:
        asked = ASKED[split, kind]
        assert len(asked) >= (0.6 * COUNT if kind in ("relation", "comparison") else COUNT)
        for scene, question in asked:
            (earlier, told), *more = question.before or (("", ""),)
            assert question.kind == kind
            assert question.answer == oracle(scene, question.text, earlier)
            assert question.answer == question.answer.lower().rstrip(".")
            assert not more
            if earlier:
                assert told == oracle(scene, earlier)


def test_only_dialogues_need_a_turn_before() -> None:
    for (_, kind), asked in ASKED.items():
        assert {bool(question.before) for _, question in asked} == {kind == "dialogue"}


def test_held_out_pairs_are_named_in_their_split_alone() -> None:
    for (split, kind), asked in ASKED.items():
        words = [f"{question.before} {question.text} {question.answer}" for _, question in asked]
        found = sum(f"{colour} {shape}" in text for text in words for colour, shape in HELD_OUT_PAIRS)
        if split != "unseen_pairs":
            assert found == 0, kind
        elif kind in ("position", "caption", "reading"):
            assert found >= 0.8 * len(asked)


def test_scenes_with_an_unseen_pair_are_asked_about_it() -> None:
    for kind in ("existence", "position", "colour", "shape"):
        for scene, question in ASKED["unseen_pairs", kind]:
            (unseen,) = (item for item in scene.objects if item.pair in HELD_OUT_PAIRS)
            named_by_shape = Counter(item.shape for item in scene.objects)[unseen.shape] == 1
            named_by_colour = Counter(item.colour for item in scene.objects)[unseen.colour] == 1
            if question.answer in ("no", "nothing"):
                continue
            if " at the " in question.text:
                assert f"at the {unseen.place}?" in question.text
            elif kind in ("existence", "position"):
                assert f"{unseen.colour} {unseen.shape}?" in question.text
            elif kind == "colour" and named_by_shape:
                assert question.text == f"What colour is the {unseen.shape}?"
            elif kind == "shape" and named_by_colour:
                assert question.text == f"Which shape is {unseen.colour}?"


# Chances


@pytest.mark.parametrize("split", ["train", "test"])
def test_half_of_the_existence_questions_are_answered_yes_and_half_of_the_others_are_hard(split: str) -> None:
    asked = ASKED[split, "existence"]
    assert abs(shares(split, "existence")["yes"] - 250) < 45  # four standard deviations: 4 sqrt(500 / 4)
    absent = [(scene, q.text.rstrip("?").split()[-2:]) for scene, q in asked if q.answer == "no"]
    similar = sum(any(o.colour == c or o.shape == s for o in scene.objects) for scene, (c, s) in absent)
    assert abs(similar - len(absent) / 2) < 2 * len(absent) ** 0.5


def test_absent_unseen_pairs_are_asked_about_where_one_is_shown() -> None:
    """Otherwise a held-out name would give the answer away."""
    absent = [q.text for _, q in ASKED["unseen_pairs", "existence"] if q.answer == "no"]
    assert sum(f"{colour} {shape}" in text for text in absent for colour, shape in HELD_OUT_PAIRS) > 10


@pytest.mark.parametrize("split", SPLITS)
def test_relations_hold_as_often_as_not(split: str) -> None:
    held = shares(split, "relation", "Is ")
    assert set(held) == {"yes", "no"}
    assert abs(held["yes"] - held["no"]) < 4 * held.total() ** 0.5


def test_every_direction_is_asked_for() -> None:
    texts = [question.text for _, question in ASKED["train", "relation"]]
    for direction in ("left of", "right of", "above", "below"):
        for begin in ("Is the", "What is directly"):
            assert sum(text.startswith(begin) and direction in text for text in texts) > 20


@pytest.mark.parametrize("split", SPLITS)
def test_places_with_and_without_neighbours_are_asked_for(split: str) -> None:
    """Three of four questions are about an object with a neighbour wherever there is one."""
    asked = [(s, q) for s, q in ASKED[split, "relation"] if q.text.startswith("What")]
    cells = [(s, {(o.row, o.column) for o in s.objects}, q) for s, q in asked]
    near = [q for _, taken, q in cells if any({(r + 1, c), (r, c + 1)} & taken for r, c in taken)]
    nothing = sum(q.answer == "nothing" for q in near)
    assert abs(nothing - len(near) / 4) < 4 * (len(near) * 3 / 16) ** 0.5


@pytest.mark.parametrize("split", SPLITS)
def test_one_place_in_four_is_empty(split: str) -> None:
    places = shares(split, "position", "What")
    assert abs(places.total() - 250) < 45
    assert abs(places["nothing"] - places.total() / 4) < 4 * (places.total() * 3 / 16) ** 0.5


def test_half_of_the_counts_are_of_all_shapes() -> None:
    every = shares("train", "count", "How many shapes are there?")
    assert abs(every.total() - 250) < 45
    # One to five are equally frequent.
    assert set(every) == set(NUMBER_WORDS[1:6])
    assert max(every.values()) < every.total() / 5 + 4 * (every.total() * 4 / 25) ** 0.5


def test_the_larger_one_is_named_first_as_often_as_last() -> None:
    asked = [q for split in SPLITS for _, q in ASKED[split, "comparison"] if q.text.startswith("Which is larger")]
    first = sum(f"larger, {question.answer} or" in question.text for question in asked)
    assert len(asked) > 100
    assert abs(first - len(asked) / 2) < 2 * len(asked) ** 0.5


def test_sizes_are_compared_where_they_differ_clearly() -> None:
    scene = place_scene(top=("red", "star"), left=("blue", "star"))
    large, small = scene.objects
    for ratio, asked in ((LARGER + 0.01, True), (LARGER - 0.01, False)):
        objects = (replace(large, radius=ratio * small.radius), small)
        questions = [ASKERS["comparison"](Scene(scene.background, objects), random.Random(n)) for n in range(60)]
        sizes = [q for q in questions if q is not None and q.text.startswith("Which is larger")]
        assert bool(sizes) == asked
        assert {question.answer for question in sizes} <= {"the red star"}
    other = replace(large, shape="ring", radius=2 * small.radius)  # of another shape: which is larger is debatable
    scene = Scene(scene.background, (other, small))
    texts = {ASKERS["comparison"](scene, random.Random(number)).text for number in range(60)}
    assert not any(text.startswith("Which is larger") for text in texts)


@pytest.mark.parametrize(
    ("kind", "bound"),
    # Uniform over 8 colours and 6 shapes, and 1/16 + 1/48 for a place; the others by their definition: half of the
    # counts are of what is there, mostly once; small groups are often equal; few objects have neighbours.
    [("colour", 0.2), ("shape", 0.23), ("position", 0.2), ("count", 0.5), ("comparison", 0.45), ("relation", 0.4),
     ("dialogue", 0.35), ("caption", 0.02)],
)  # fmt: skip
def test_no_answer_is_right_too_often(kind: str, bound: float) -> None:
    for split in ("train", "test"):
        answers = shares(split, kind)
        assert max(answers.values()) < bound * answers.total(), answers.most_common(3)


# When a question is not asked


def test_a_question_that_has_two_answers_is_not_asked() -> None:
    twins = place_scene(top=("red", "star"), bottom=("red", "circle"))
    texts = {ASKERS["shape"](twins, random.Random(number)).text for number in range(50)}
    assert texts == {"Which shape is at the top?", "Which shape is at the bottom?"}
    texts = {ASKERS["colour"](twins, random.Random(number)).text for number in range(200)}
    assert texts == {
        "What colour is the star?",
        "What colour is the circle?",
        "What colour is the shape at the top?",
        "What colour is the shape at the bottom?",
    }


def test_a_single_object_has_no_relation_to_another() -> None:
    scene = place_scene(centre=("blue", "ring"))
    asked = [ASKERS["relation"](scene, random.Random(number)) for number in range(100)]
    assert {question and question.answer for question in asked} == {None, "nothing"}


# Reasoning


@pytest.mark.parametrize("split", SPLITS)
def test_reasoning_lists_what_is_counted(split: str) -> None:
    seen = set()
    for scene, question in ASKED[split, "count"]:
        name = re.fullmatch(r"How many (.+) are there\?", question.text)[1]
        listed = [] if question.reasoning == "nothing" else question.reasoning.split(", ")
        assert listed == named(scene, name)
        assert question.answer == NUMBER_WORDS[len(listed)]
        seen.add(question.answer)
    assert len(seen) >= 5


@pytest.mark.parametrize("split", SPLITS)
def test_reasoning_counts_what_is_compared(split: str) -> None:
    for scene, question in ASKED[split, "comparison"]:
        if question.text.startswith("Which is larger"):
            assert question.reasoning is None
            continue
        names = re.fullmatch(r"Are there more (.+) or more (.+)\?", question.text).groups()
        parts = [part.split(": ") for part in question.reasoning.split("; ")]
        counts = [NUMBER_WORDS.index(count) for _, count in parts]
        for name, (listing, _), count in zip(names, parts, counts, strict=True):
            listed = [] if listing == "nothing" else listing.split(", ")
            assert listed == named(scene, name)
            assert count == len(listed)
        assert (counts[0] == counts[1]) == (question.answer == "equally many")
        if counts[0] != counts[1]:
            assert question.answer == f"more {names[counts.index(max(counts))]}"


# Words


def test_articles_and_enumerations() -> None:
    assert [with_article((colour, "star")) for colour in ("orange", "red")] == ["an orange star", "a red star"]
    assert [enumerated(list("abc"[:count])) for count in (1, 2, 3)] == ["a", "a and b", "a, b and c"]


def test_captions_and_readings_hold_every_object_and_its_place() -> None:
    scene = place_scene(top_left=("orange", "ring"), centre=("pink", "cross"), right=("brown", "star"))
    assert caption(scene) == "an orange ring at the top left, a pink cross at the centre and a brown star at the right"
    assert reading(scene) == "orange ring, -, -, -, pink cross, brown star, -, -, -"
    assert {len(reading(scene).split(", ")) for scene in SCENES["more_objects"]} == {9}


def test_facts_are_all_there_in_any_order() -> None:
    in_order = 0
    for number, scene in enumerate(SCENES["train"]):
        expected = [f"{' '.join(item.pair)} {item.place}" for item in scene.objects]
        text = facts(scene, random.Random(number))
        told = sorted(expected, key=text.index)
        assert text == " ".join(told)
        in_order += len(told) == 5 and told == expected
    assert in_order < 10  # one in 120 of those with five objects


RELATION = re.compile(
    rf"({'|'.join(COLOURS)}) ({'|'.join(SHAPES)}) (left|right|above|below) "
    rf"({'|'.join(COLOURS)}) ({'|'.join(SHAPES)}) ({'|'.join(sorted(PLACES, key=len, reverse=True))})"
)


def test_relations_hold_and_those_of_neighbours_come_first():
    directions = set()
    for number, scene in enumerate(SCENES["train"]):
        text = relations(scene, random.Random(number))
        if len(scene.objects) == 1:
            assert text == facts(scene, random.Random(number))
            continue
        assert RELATION.sub("", text).strip() == ""
        at = {f"{item.colour} {item.shape}": (int(3 * item.y), int(3 * item.x)) for item in scene.objects}
        distances = []
        for colour, shape, direction, other_colour, other_shape, place in RELATION.findall(text):
            (row, column), (other_row, other_column) = at[f"{colour} {shape}"], at[f"{other_colour} {other_shape}"]
            assert place == next(item.place for item in scene.objects if item.pair == (other_colour, other_shape))
            assert {
                "left": column < other_column, "right": column > other_column,
                "above": row < other_row, "below": row > other_row,
            }[direction]  # fmt: skip
            directions.add(direction)
            distances.append(abs(row - other_row) + abs(column - other_column) > 1)
        assert distances == sorted(distances)
        assert len(distances) == min(len(at) * (len(at) - 1), RELATIONS_TOLD)
    assert directions == {"left", "right", "above", "below"}


def test_all_names_are_asked_for() -> None:
    texts = " ".join(question.text + question.answer for asked in ASKED.values() for _, question in asked)
    assert all(name in texts for name in (*COLOURS, *SHAPES, *NUMBER_WORDS))
