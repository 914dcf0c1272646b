"""Scenes of shapes: what stands where, what is held out, and that pictures show what the scene says."""

import itertools
import math
import random
from collections import Counter

import numpy as np
import pytest

from transformers_lladav.shape_scenes import (
    BACKGROUNDS,
    CELL_MARGIN,
    COLOUR_JITTER,
    COLOURS,
    CROSS_ARM,
    HELD_OUT_PAIRS,
    MAX_ROTATION,
    PAIRS,
    PLACES,
    RADII,
    RING_HOLE,
    SEEN_PAIRS,
    SHAPES,
    STAR_WAIST,
    Scene,
    SceneObject,
    change_scene,
    draw_object,
    draw_pairs,
    layout_text,
    make_scene,
    render_scene,
)
from transformers_lladav.splits import SPLIT_SEEDS, is_held_out

COUNT = 1000
SCENES = {split: [make_scene(split, index) for index in range(COUNT)] for split in SPLIT_SEEDS}
TRAIN = [*SCENES["train"], *(make_scene("train", index) for index in range(COUNT, 4 * COUNT))]
ALL = [scene for scenes in SCENES.values() for scene in scenes]
SIDE = 96


def shape_area(item: SceneObject) -> float:
    """The area of a shape with circumradius r, by school geometry."""
    reach = math.sqrt(1 - CROSS_ARM**2)
    areas = {
        "square": 2.0,
        "triangle": 3 / 2 * math.sin(math.radians(120)),
        "star": 5 * STAR_WAIST * math.sin(math.radians(36)),
        "circle": math.pi,
        "ring": math.pi * (1 - RING_HOLE**2),
        "cross": 2 * (2 * reach * 2 * CROSS_ARM) - (2 * CROSS_ARM) ** 2,  # two bars, less where they lie on each other
    }
    return areas[item.shape] * item.radius**2


def pixels_of(scene: Scene, size: int) -> np.ndarray:
    return np.asarray(render_scene(scene, size)).astype(int)


def test_held_out_pairs_take_every_shape_once_and_leave_every_name_seen() -> None:
    assert len(PAIRS) == 48
    assert sorted(shape for _, shape in HELD_OUT_PAIRS) == sorted(SHAPES)
    assert len({colour for colour, _ in HELD_OUT_PAIRS}) == 6
    assert set(SEEN_PAIRS) == set(PAIRS) - HELD_OUT_PAIRS
    assert {colour for colour, _ in SEEN_PAIRS} == set(COLOURS)


def test_layouts_of_validation_test_and_demo_never_occur_in_training() -> None:
    train = {scene.layout for scene in TRAIN}
    assert not any(map(is_held_out, train))
    for split in ("validation", "test", "demo"):
        layouts = {scene.layout for scene in SCENES[split]}
        assert all(map(is_held_out, layouts))
        assert train.isdisjoint(layouts)


def test_held_out_pairs_appear_only_in_their_split_and_once_per_scene() -> None:
    for split, scenes in SCENES.items():
        counts = {sum(item.pair in HELD_OUT_PAIRS for item in scene.objects) for scene in scenes}
        assert counts == ({1} if split == "unseen_pairs" else {0})
    assert not any(item.pair in HELD_OUT_PAIRS for scene in TRAIN for item in scene.objects)
    shown = {item.pair for scene in SCENES["unseen_pairs"] for item in scene.objects}
    assert shown >= HELD_OUT_PAIRS


def test_training_shows_every_other_pair_in_every_place() -> None:
    seen = {(item.pair, item.place) for scene in TRAIN for item in scene.objects}
    assert len(seen) == (48 - 6) * 9


@pytest.mark.parametrize("split", SPLIT_SEEDS)
def test_counts_and_backgrounds_are_uniform(split: str) -> None:
    counts = Counter(len(scene.objects) for scene in SCENES[split])
    backgrounds = Counter(scene.background for scene in SCENES[split])
    sizes = (6, 7) if split == "more_objects" else (1, 2, 3, 4, 5)
    assert set(counts) == set(sizes)
    assert set(backgrounds) == set(BACKGROUNDS)
    # Four standard deviations of a binomial of 1000 draws: 63 with p = 1/2, 51 with p = 1/5.
    assert all(abs(number - COUNT / len(sizes)) < 63 for number in counts.values())
    assert all(abs(number - 200) < 51 for number in backgrounds.values())


def test_half_of_the_draws_repeat_colours_and_shapes() -> None:
    rng = random.Random(0)
    drawn = [draw_pairs(rng, 7) for _ in range(1000)]
    assert all(len(set(pairs)) == 7 and set(pairs) <= set(SEEN_PAIRS) for pairs in drawn)
    narrow = sum(
        len({colour for colour, _ in pairs}) <= 4 and len({shape for _, shape in pairs}) <= 3 for pairs in drawn
    )
    assert abs(narrow - 500) < 63 + 10  # seven of all pairs are as narrow by chance in less than one draw in a hundred


def test_objects_are_distinct_sorted_and_inside_their_cells() -> None:
    for scene in ALL:
        cells = [(item.row, item.column) for item in scene.objects]
        assert cells == sorted(set(cells))
        assert len({item.pair for item in scene.objects}) == len(scene.objects)
        for item in scene.objects:
            assert item.place == PLACES[3 * int(3 * item.y) + int(3 * item.x)]
            assert RADII[0] <= item.radius <= RADII[1]
            assert abs(item.rotation) <= (0 if item.shape in ("circle", "ring") else MAX_ROTATION)
            for centre, cell in ((item.x, item.column), (item.y, item.row)):
                assert centre - item.radius >= cell / 3 + CELL_MARGIN - 1e-9
                assert centre + item.radius <= (cell + 1) / 3 - CELL_MARGIN + 1e-9


def test_the_layout_names_nine_cells_in_reading_order() -> None:
    assert layout_text({"bottom right": ("red", "ring"), "top": ("blue", "star")}) == (
        "empty, blue star, empty, empty, empty, empty, empty, empty, red ring"
    )
    for scene in ALL[:200]:
        assert [cell for cell in scene.layout.split(", ") if cell != "empty"] == [
            f"{item.colour} {item.shape}" for item in scene.objects
        ]


# Pictures


def test_colour_names_stay_unambiguous_under_jitter() -> None:
    jitter = math.sqrt(3) * COLOUR_JITTER
    between = itertools.combinations(COLOURS.values(), 2)
    against_backgrounds = itertools.product(COLOURS.values(), BACKGROUNDS)
    assert min(math.dist(*pair) for pair in itertools.chain(between, against_backgrounds)) > max(70, 2 * jitter)


def test_shapes_are_drawn_in_the_colour_they_are_called() -> None:
    """The middle of every shape (of a ring, of its band) is nearest to its colour's name, as drawn and as defined."""
    names: dict[str, tuple[int, int, int]] = COLOURS | {str(colour): colour for colour in BACKGROUNDS}
    for scene in ALL[:: len(ALL) // 150]:
        picture = pixels_of(scene, SIDE)
        assert picture.shape == (SIDE, SIDE, 3)
        for item in scene.objects:
            x = item.x + (item.radius * (1 + RING_HOLE) / 2 if item.shape == "ring" else 0)
            for colour in (picture[int(item.y * SIDE), int(x * SIDE)].tolist(), item.rgb):
                assert min(names, key=lambda name: math.dist(colour, names[name])) == item.colour


def test_each_cell_is_covered_by_the_area_of_its_shape_and_others_by_nothing() -> None:
    size = 288
    seen = Counter()
    for scene in ALL[:: len(ALL) // 40]:
        picture = pixels_of(scene, size) - scene.background
        items = {(item.row, item.column): item for item in scene.objects}
        for row, column in itertools.product(range(3), range(3)):
            # How far each pixel is on the way from the background to the object's colour is how much of it is covered.
            cell = picture[row * 96 : (row + 1) * 96, column * 96 : (column + 1) * 96]
            if (row, column) not in items:
                assert not cell.any()
                continue
            item = items[row, column]
            towards = np.array(item.rgb) - scene.background
            covered = (cell @ towards).sum() / (towards @ towards) / size**2
            # Pillow fills the pixels on the edge too, which adds about a supersampled pixel around the shape.
            assert covered == pytest.approx(shape_area(item), rel=0.06)
            seen[item.shape] += 1
    assert set(seen) == set(SHAPES)


def test_shapes_leave_a_margin_in_their_cells() -> None:
    """Without its cells' inner part, a picture is plain background: no shape reaches into another's cell."""
    size, margin = 300, round(300 * CELL_MARGIN) - 1
    for scene in SCENES["more_objects"][:30]:
        picture = pixels_of(scene, size)
        for row, column in itertools.product(range(3), range(3)):
            inner = (slice(100 * at + margin, 100 * (at + 1) - margin) for at in (row, column))
            picture[tuple(inner)] = scene.background
        assert (picture == scene.background).all()


def test_pictures_of_equal_layouts_differ() -> None:
    layout, count = Counter(scene.layout for scene in SCENES["test"]).most_common(1)[0]
    same = [scene for scene in SCENES["test"] if scene.layout == layout]
    assert count > 1
    assert len({render_scene(scene, SIDE).tobytes() for scene in same}) == count


# Changes


def test_changing_a_scene_keeps_the_reading_order() -> None:
    rng = random.Random(0)
    first, last, middle = (
        draw_object(rng, place, pair)
        for place, pair in (("top", ("red", "star")), ("bottom", ("blue", "ring")), ("centre", ("pink", "cross")))
    )
    scene = Scene(BACKGROUNDS[0], (first, last))
    assert change_scene(scene, None, middle).objects == (first, middle, last)
    assert change_scene(scene, first, None).objects == (last,)
    assert change_scene(scene, last, middle).objects == (first, middle)
    assert change_scene(scene, None, None) == scene


def test_an_object_is_drawn_around_the_middle_of_its_cell() -> None:
    rng = random.Random(0)
    drawn = [draw_object(rng, "bottom left", ("yellow", "square")) for _ in range(2000)]
    assert {(item.row, item.column, item.pair) for item in drawn} == {(2, 0, ("yellow", "square"))}
    # Standard deviations: of a place below (1/6 - 0.01 - 0.085) / sqrt 3 = 0.042, of a radius 0.055 / sqrt 12.
    assert np.mean([(item.x, item.y) for item in drawn], axis=0) == pytest.approx([1 / 6, 5 / 6], abs=0.004)
    assert np.mean([item.radius for item in drawn]) == pytest.approx(sum(RADII) / 2, abs=0.0015)
    assert all(abs(c - d) <= COLOUR_JITTER for item in drawn for c, d in zip(item.rgb, COLOURS["yellow"], strict=True))
    assert max(max(item.rgb) for item in drawn) == 255  # yellow's red would be 256 at most
