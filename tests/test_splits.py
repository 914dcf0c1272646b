"""Seeds and the hash of the suite: fixed for good, as everything measured on it depends on them."""

import itertools

import pytest

from transformers_lladav.splits import SPLIT_SEEDS, is_held_out, split_seed


def test_splits_are_disjoint_seed_ranges() -> None:
    for left, right in itertools.combinations(SPLIT_SEEDS.values(), 2):
        assert left.stop <= right.start or right.stop <= left.start


def test_the_seeds_of_the_splits_never_change() -> None:
    bounds = {split: (seeds.start, seeds.stop, seeds.step) for split, seeds in SPLIT_SEEDS.items()}
    assert bounds == {
        "validation": (0, 100_000, 1),
        "test": (100_000, 200_000, 1),
        "unseen_pairs": (200_000, 300_000, 1),
        "demo": (300_000, 400_000, 1),
        "more_objects": (400_000, 500_000, 1),
        "unseen_fonts": (500_000, 600_000, 1),
        "train": (1_000_000, 2_147_483_648, 1),
    }


@pytest.mark.parametrize(
    ("split", "index", "seed"),
    [
        ("validation", 0, 0),
        ("test", 99_999, 199_999),
        ("unseen_pairs", 7, 200_007),
        ("unseen_fonts", 1, 500_001),
        ("train", 5, 1_000_005),
        ("train", 2**31 - 1_000_001, 2**31 - 1),
    ],
)
def test_split_seed_counts_from_the_start_of_the_range(split: str, index: int, seed: int) -> None:
    assert split_seed(split, index) == seed


@pytest.mark.parametrize("index", [-1, 100_000])
def test_index_outside_the_split_is_refused_with_the_range(index: int) -> None:
    with pytest.raises(ValueError, match=rf"index={index} .*'test' of 100000 seeds; pass an index in \[0, 100000\)"):
        split_seed("test", index)


def test_unknown_split_is_refused_with_the_known_ones() -> None:
    known = "validation, test, unseen_pairs, demo, more_objects, unseen_fonts, train"
    with pytest.raises(ValueError, match=f"split='dev' is not a split of the suite; pass one of {known}"):
        split_seed("dev", 0)


def test_the_hash_never_changes() -> None:
    words = ["red", "green", "blue", "yellow", "purple", "orange", "pink", "brown"]
    held = [f"{word} {number}" for word in words for number in range(10) if is_held_out(f"{word} {number}")]
    assert held == [
        "red 2",
        "red 4",
        "green 1",
        "blue 6",
        "blue 7",
        "yellow 0",
        "yellow 5",
        "purple 3",
        "purple 4",
        "purple 7",
        "orange 7",
        "pink 0",
        "brown 7",
    ]


def test_one_content_in_ten_is_held_out() -> None:
    # Four standard deviations of a binomial of 10,000 draws with p = 1/10 are 120.
    assert abs(sum(is_held_out(str(number)) for number in range(10_000)) - 1000) < 120
