"""The scene world: what it draws, what it asks, and what it keeps apart."""

import itertools
import math
import random
import re
from collections import Counter
from hashlib import blake2b

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from transformers_lladav.scenes import (
    BACKGROUNDS,
    CELL_MARGIN,
    COLOUR_JITTER,
    COLOURS,
    EVALUATED_KINDS,
    HELD_OUT_PAIRS,
    MAX_ROTATION,
    PLACES,
    QUESTION_KINDS,
    RADII,
    SHAPES,
    SPLIT_SEEDS,
    STAR_WAIST,
    TARGET_KINDS,
    Question,
    Scene,
    SceneObject,
    all_texts,
    ask,
    evaluation_set,
    is_held_out,
    make_scene,
    questions,
    render,
    split_seed,
)

SPLITS = tuple(SPLIT_SEEDS)
SCENES_PER_SPLIT = 1500
SCENES = {split: [make_scene(split, index) for index in range(SCENES_PER_SPLIT)] for split in SPLITS}

any_scene = st.builds(make_scene, st.sampled_from(SPLITS), st.integers(0, 99_999))


def shape_area(item: SceneObject) -> float:
    """The area of a shape with circumradius r, by school geometry."""
    sines = {
        "square": 2.0,
        "triangle": 3 / 2 * math.sin(math.radians(120)),
        "star": 5 * STAR_WAIST * math.sin(math.radians(36)),
        "circle": math.pi,
    }
    return sines[item.shape] * item.radius**2


def distance(left: tuple[int, ...], right: tuple[int, ...]) -> float:
    """Euclidean distance of two colours."""
    return math.dist(left, right)


# Seeds and splits


def test_splits_are_disjoint_seed_ranges() -> None:
    for left, right in itertools.combinations(SPLIT_SEEDS.values(), 2):
        assert left.stop <= right.start or right.stop <= left.start


@pytest.mark.parametrize(
    ("split", "index", "seed"),
    [("validation", 0, 0), ("test", 99_999, 199_999), ("unseen_pairs", 7, 200_007), ("train", 5, 1_000_005)],
)
def test_split_seed_counts_from_the_start_of_the_range(split: str, index: int, seed: int) -> None:
    assert split_seed(split, index) == seed
    assert make_scene(split, index).seed == seed


@pytest.mark.parametrize("index", [-1, 100_000])
def test_index_outside_the_split_is_refused_with_the_range(index: int) -> None:
    with pytest.raises(ValueError, match=rf"index={index} .*'test' of 100000 scenes; pass an index in \[0, 100000\)"):
        make_scene("test", index)


def test_unknown_split_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"split='dev' .* validation, test, unseen_pairs, demo, train"):
        split_seed("dev", 0)


# Scenes


def test_first_test_scenes_never_change() -> None:
    words, pixels = blake2b(digest_size=8), blake2b(digest_size=8)
    for index in range(20):
        scene = make_scene("test", index)
        for question in questions(scene, random.Random(index)):
            words.update(f"{question.kind}|{question.text}|{question.answer}\n".encode())
        pixels.update(render(scene, size=64).tobytes())
    assert words.hexdigest() == "2d6953e0b4975b2c"
    assert pixels.hexdigest() == "ff185ca83173c05e", "the pictures changed, or Pillow draws or resizes differently"


def test_test_layouts_never_occur_in_training() -> None:
    train = {scene.layout for scene in SCENES["train"]}
    for split in ("validation", "test", "demo"):
        assert train.isdisjoint(scene.layout for scene in SCENES[split])
        assert all(is_held_out(scene.layout) for scene in SCENES[split])
    assert not any(is_held_out(layout) for layout in train)


def test_one_layout_in_ten_is_held_out() -> None:
    # 1500 unrestricted scenes have more than 800 distinct layouts: four standard deviations are below 0.043.
    layouts = {scene.layout for scene in SCENES["unseen_pairs"]}
    assert len(layouts) > 800
    assert sum(map(is_held_out, layouts)) / len(layouts) == pytest.approx(0.1, abs=0.043)


def test_held_out_pairs_appear_only_in_their_split_and_once_per_scene() -> None:
    for split in SPLITS:
        counts = {sum(item.pair in HELD_OUT_PAIRS for item in scene.objects) for scene in SCENES[split]}
        assert counts == ({1} if split == "unseen_pairs" else {0})


def test_training_shows_every_other_pair_in_every_place() -> None:
    seen = Counter((item.pair, item.place) for scene in SCENES["train"] for item in scene.objects)
    assert len(seen) == (len(COLOURS) * len(SHAPES) - len(HELD_OUT_PAIRS)) * len(PLACES)
    assert {colour for (colour, _), _ in seen} == set(COLOURS)
    assert {shape for (_, shape), _ in seen} == set(SHAPES)


@pytest.mark.parametrize("split", SPLITS)
def test_counts_and_backgrounds_are_uniform(split: str) -> None:
    counts = Counter(len(scene.objects) for scene in SCENES[split])
    backgrounds = Counter(scene.background for scene in SCENES[split])
    assert set(counts) == {1, 2, 3}
    assert set(backgrounds) == set(BACKGROUNDS.values())
    # Four standard deviations of a binomial of 1500 draws with p = 1/3 (18.3) and p = 1/5 (15.5).
    assert all(abs(number - 500) < 74 for number in counts.values())
    assert all(abs(number - 300) < 62 for number in backgrounds.values())


@given(any_scene)
@settings(max_examples=200, deadline=None)
def test_objects_are_distinct_sorted_and_inside_their_cells(scene: Scene) -> None:
    cells = [(item.row, item.column) for item in scene.objects]
    assert cells == sorted(set(cells))
    assert len({item.pair for item in scene.objects}) == len(scene.objects)
    for item in scene.objects:
        assert RADII[0] <= item.radius <= RADII[1]
        assert abs(item.rotation) <= (0 if item.shape == "circle" else MAX_ROTATION)
        for centre, cell in ((item.x, item.column), (item.y, item.row)):
            assert centre - item.radius >= cell / 2 + CELL_MARGIN - 1e-9
            assert centre + item.radius <= (cell + 1) / 2 - CELL_MARGIN + 1e-9


# Pictures


def test_colour_names_stay_unambiguous_under_jitter() -> None:
    jitter = math.sqrt(3) * COLOUR_JITTER
    neighbours = itertools.combinations(COLOURS.values(), 2)
    against_backgrounds = itertools.product(COLOURS.values(), BACKGROUNDS.values())
    assert min(distance(*pair) for pair in itertools.chain(neighbours, against_backgrounds)) > 2 * jitter


@given(any_scene, st.sampled_from([64, 96]))
@settings(max_examples=60, deadline=None)
def test_the_pixel_at_the_centre_has_the_named_colour(scene: Scene, size: int) -> None:
    picture = render(scene, size=size)
    assert (picture.mode, picture.size) == ("RGB", (size, size))
    pixels = np.asarray(picture)
    names = {**COLOURS, **BACKGROUNDS}
    for item in scene.objects:
        pixel = pixels[int(item.y * size), int(item.x * size)].tolist()
        assert min(names, key=lambda name: distance(pixel, names[name])) == item.colour


@given(any_scene)
@settings(max_examples=40, deadline=None)
def test_each_cell_is_covered_by_the_area_of_its_shape(scene: Scene) -> None:
    size = 256
    pixels = np.asarray(render(scene, size=size)).astype(int)
    # How far each pixel is on the way from the background to the object's colour is how much of it is covered.
    items = {(item.row, item.column): item for item in scene.objects}
    for row, column in itertools.product(range(2), range(2)):
        cell = pixels[row * 128 : (row + 1) * 128, column * 128 : (column + 1) * 128] - scene.background
        if (row, column) not in items:
            assert not cell.any()
            continue
        item = items[row, column]
        towards = np.array(item.rgb) - scene.background
        covered = (cell @ towards).sum() / (towards @ towards) / size**2
        # Pillow fills the pixels on the edge too, which adds about a supersampled pixel around the shape.
        assert covered == pytest.approx(shape_area(item), rel=0.03)


def test_pictures_of_equal_layouts_differ() -> None:
    single_layouts = Counter(scene.layout for scene in SCENES["test"] if len(scene.objects) == 1)
    layout = single_layouts.most_common(1)[0][0]
    singles = [scene for scene in SCENES["test"] if scene.layout == layout]
    assert len(singles) > 10
    assert len({render(scene).tobytes() for scene in singles}) == len(singles)


# Questions


def answer_independently(scene: Scene, question: Question) -> str:
    """Answer from coordinates and plain text, sharing no code with the module."""
    names = {
        f"{'bottom' if item.y > 0.5 else 'top'} {'right' if item.x > 0.5 else 'left'}": f"{item.colour} {item.shape}"
        for item in scene.objects
    }
    places = {name: place for place, name in names.items()}
    if match := re.fullmatch(r"What colour is the (\w+)\?", question.text):
        (answer,) = (name.split()[0] for name in places if name.endswith(match[1]))
    elif match := re.fullmatch(r"Which shape is (\w+)\?", question.text):
        (answer,) = (name.split()[1] for name in places if name.startswith(match[1]))
    elif match := re.fullmatch(r"What is at the (\w+ \w+)\?", question.text):
        answer = re.sub(r"^a (?=orange)", "an ", f"a {names[match[1]]}") if match[1] in names else "nothing"
    elif match := re.fullmatch(r"Where is the (\w+ \w+)\?", question.text):
        answer = f"at the {places[match[1]]}"
    elif match := re.fullmatch(r"Is there (?:a|an) (\w+ \w+)\?", question.text):
        answer = "yes" if match[1] in places else "no"
    elif question.text == "How many shapes are there?":
        answer = {1: "one", 2: "two", 3: "three"}[len(places)]
    elif question.text == "Read the grid.":
        answer = ", ".join(
            names.get(f"{row} {column}", "empty") for row in ("top", "bottom") for column in ("left", "right")
        )
    else:
        assert question.text == "Describe the picture."
        order = sorted(names, key=["top left", "top right", "bottom left", "bottom right"].index)
        phrases = [f"a {names[place]} at the {place}".replace("a orange", "an orange") for place in order]
        answer = {1: "{}", 2: "{} and {}", 3: "{}, {} and {}"}[len(phrases)].format(*phrases)
    return answer


@given(any_scene, st.randoms(use_true_random=False))
@settings(max_examples=400, deadline=None)
def test_every_answer_follows_from_the_scene(scene: Scene, rng: random.Random) -> None:
    asked = questions(scene, rng)
    for question in asked:
        assert question.answer == answer_independently(scene, question)
        assert question.answer == question.answer.lower().rstrip(".")
    colours = Counter(item.colour for item in scene.objects)
    shapes = Counter(item.shape for item in scene.objects)
    impossible = {kind for kind, names in (("colour", shapes), ("shape", colours)) if 1 not in names.values()}
    assert [question.kind for question in asked] == [kind for kind in QUESTION_KINDS if kind not in impossible]


def test_kinds() -> None:
    assert set(QUESTION_KINDS) - set(EVALUATED_KINDS) == {"grid"}
    assert set(EVALUATED_KINDS) - set(TARGET_KINDS) == {"existence"}
    with pytest.raises(ValueError, match=r"kind='size' .* colour, shape, what_is_at"):
        ask(SCENES["test"][0], "size", random.Random(0))


def test_ambiguous_questions_are_not_asked() -> None:
    two_of_one_colour = next(
        scene
        for scene in SCENES["train"]
        if len(scene.objects) == 2 and scene.objects[0].colour == scene.objects[1].colour
    )
    assert ask(two_of_one_colour, "shape", random.Random(0)) is None
    assert ask(two_of_one_colour, "colour", random.Random(0)) is not None


@pytest.mark.parametrize("split", ["train", "test"])
def test_existence_is_balanced_and_hard_and_never_names_a_held_out_pair(split: str) -> None:
    rng, yes, similar = random.Random(0), 0, 0
    for scene in SCENES[split]:
        question = ask(scene, "existence", rng)
        assert question is not None
        colour, shape = question.text.rstrip("?").split()[-2:]
        assert (colour, shape) not in HELD_OUT_PAIRS
        yes += question.answer == "yes"
        if question.answer == "no":
            similar += any(item.colour == colour or item.shape == shape for item in scene.objects)
    # Four standard deviations: 4 sqrt(1500 / 4) = 77, and 4 sqrt(750 / 4) = 55.
    assert abs(yes - SCENES_PER_SPLIT / 2) < 77
    assert abs(similar - (SCENES_PER_SPLIT - yes) / 2) < 55


def test_one_place_question_in_four_is_about_an_empty_place() -> None:
    rng = random.Random(0)
    asked = [ask(scene, "what_is_at", rng) for scene in SCENES["train"]]
    empty = sum(question is not None and question.answer == "nothing" for question in asked)
    assert abs(empty - 375) < 67  # four standard deviations: 4 sqrt(1500 * 3 / 16)


def test_scenes_with_an_unseen_pair_are_asked_about_it() -> None:
    for scene in SCENES["unseen_pairs"]:
        (unseen,) = (item for item in scene.objects if item.pair in HELD_OUT_PAIRS)
        question = ask(scene, "where_is", random.Random(0))
        assert question == Question(
            "where_is", f"Where is the {unseen.colour} {unseen.shape}?", f"at the {unseen.place}"
        )


@pytest.mark.parametrize("split", ["test", "unseen_pairs"])
def test_evaluation_set_takes_the_kinds_in_turn(split: str) -> None:
    examples = evaluation_set(split, 10 * len(EVALUATED_KINDS))
    assert [question.kind for _, question in examples] == list(EVALUATED_KINDS) * 10
    seeds = [scene.seed for scene, _ in examples]
    assert seeds == sorted(set(seeds))
    assert set(seeds) <= set(SPLIT_SEEDS[split])
    assert evaluation_set(split, 13) == examples[:13]


# Texts


def test_all_texts_are_distinct_and_cover_what_is_asked() -> None:
    texts = list(all_texts())
    assert len(texts) == len(set(texts))
    asked = [q for split in SPLITS for s in SCENES[split][:200] for q in questions(s, random.Random(s.seed))]
    assert {question.text for question in asked} <= set(texts)
    assert {question.answer for question in asked if question.kind not in ("caption", "grid")} <= set(texts)
    words = {word for text in texts for word in re.findall(r"\w+|\S", text)}
    assert {word for question in asked for word in re.findall(r"\w+|\S", question.answer)} <= words


def test_articles() -> None:
    texts = " ".join(all_texts(sampled_scenes=200))
    assert "an orange circle" in texts
    assert not re.search(r"\ba [aeiou]|\ban [^aeiou]", texts)
