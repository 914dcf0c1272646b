"""Which seeds belong to which split, and what is kept out of training: the part of the suite that must never change.

    split          seeds                 content
    validation     0 .. 99_999           layouts, words and charts that are held out
    test           100_000 .. 199_999    the same
    unseen_pairs   200_000 .. 299_999    exactly one object of a (colour, shape) pair that is never trained
    demo           300_000 .. 399_999    held out, for pictures to show
    more_objects   400_000 .. 499_999    six or seven objects; training has at most five
    unseen_fonts   500_000 .. 599_999    held-out words in a typeface that is never trained
    train          1_000_000 .. 2^31-1   all other layouts, words and charts

Any seed of the train split may be trained on; those of the others are reserved.
"""

from hashlib import blake2b

SUITE_VERSION = 2
SPLIT_SEEDS = {
    "validation": range(100_000),
    "test": range(100_000, 200_000),
    "unseen_pairs": range(200_000, 300_000),
    "demo": range(300_000, 400_000),
    "more_objects": range(400_000, 500_000),
    "unseen_fonts": range(500_000, 600_000),
    "train": range(1_000_000, 2**31),
}


def split_seed(split: str, index: int) -> int:
    """The seed of the example number `index` of a split; every split counts from 0.

    Args:
        split: one of `SPLIT_SEEDS`.
        index: from 0.

    Returns:
        The seed.

    Raises:
        ValueError: if there is no such split or index.
    """
    if split not in SPLIT_SEEDS:
        raise ValueError(f"split={split!r} is not a split of the suite; pass one of {', '.join(SPLIT_SEEDS)}")
    seeds = SPLIT_SEEDS[split]
    if not 0 <= index < len(seeds):
        raise ValueError(
            f"index={index} is outside the split {split!r} of {len(seeds)} seeds; pass an index in [0, {len(seeds)})"
        )
    return seeds[index]


def is_held_out(content: str) -> bool:
    """Tell whether a content is kept from training: one in ten, by a hash that no Python version changes.

    Args:
        content: what a picture says, in canonical words.

    Returns:
        True if it belongs to validation and test.
    """
    return int.from_bytes(blake2b(content.encode(), digest_size=8).digest(), "big") % 10 == 0
