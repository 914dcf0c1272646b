"""Signs: what they say, and that every character can be read."""

import random
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from transformers_lladav.lettering import CHARACTERS
from transformers_lladav.shape_scenes import BACKGROUNDS, COLOURS
from transformers_lladav.signs import (
    BLACK,
    BORDER,
    CELL,
    HEIGHTS,
    LIGHT,
    SHIFT,
    WAVER,
    WORDS,
    Sign,
    draw_text,
    make_sign,
    render_sign,
)
from transformers_lladav.splits import SPLIT_SEEDS, is_held_out

COUNT = 1500
SIGNS = {split: [make_sign(split, index) for index in range(COUNT)] for split in ("train", "test", "unseen_fonts")}
ALL = [sign for signs in SIGNS.values() for sign in signs]
SIDE = 96


def ink_of(sign: Sign, size: int) -> np.ndarray:
    """Where a sign's ink is: what differs from the same sign without any text, in fractions of the full contrast."""
    blank = replace(sign, text="", middles=())
    full = np.abs(np.subtract(sign.ink, sign.board)).sum()
    pictures = (np.asarray(render_sign(shown, size)).astype(int) for shown in (sign, blank))
    return np.abs(np.subtract(*pictures)).sum(axis=2) / full


def only(sign: Sign, text: str, middle: float) -> Sign:
    """A sign with a character in place of its text."""
    return replace(sign, text=text, middles=(middle,))


def test_texts_have_two_to_six_characters_and_are_letters_or_digits() -> None:
    rng = random.Random(0)
    texts = [draw_text(rng) for _ in range(4000)]
    assert {len(text) for text in texts} == {2, 3, 4, 5, 6}
    assert all(text.isdigit() or (text.isalpha() and text.isupper()) for text in texts)
    assert set("".join(texts)) == set(CHARACTERS)
    assert not any(set(text) <= {"I", "O"} or set(text) == {"1"} for text in texts)
    # 0.4 of the draws are words, 0.3 numbers and 0.3 other letters; four standard deviations of 4000 draws.
    assert abs(sum(text.isdigit() for text in texts) - 1200) < 116
    assert abs(sum(text in WORDS for text in texts) - 1600) < 124
    assert not any(text.isdigit() and text[0] == "0" for text in texts)


def test_words_are_distinct_and_can_be_written() -> None:
    assert len(set(WORDS)) == len(WORDS)
    assert all(2 <= len(word) <= 6 and set(word) <= set(CHARACTERS) for word in WORDS)
    held = sum(map(is_held_out, WORDS))
    assert 0.05 * len(WORDS) < held < 0.15 * len(WORDS)


def test_texts_of_other_splits_never_occur_in_training() -> None:
    assert not any(is_held_out(sign.layout) for sign in SIGNS["train"])
    for split in SPLIT_SEEDS:
        if split != "train":
            assert all(is_held_out(make_sign(split, index).text) for index in range(200))


def test_only_unseen_fonts_use_the_typeface() -> None:
    for split, signs in SIGNS.items():
        assert {sign.style.typeface for sign in signs} == {split == "unseen_fonts"}


def test_characters_stand_in_neighbouring_cells_of_one_row() -> None:
    begins = Counter()
    for sign in ALL:
        assert len(sign.middles) == len(sign.text)
        cells = [int(middle / CELL) for middle in sign.middles]
        assert cells == list(range(cells[0], cells[0] + len(sign.text)))
        places = [(middle / CELL - cell - 0.5) * CELL for middle, cell in zip(sign.middles, cells, strict=True)]
        assert max(map(abs, places)) <= SHIFT + WAVER + 1e-9
        assert max(places) - min(places) <= 2 * WAVER + 1e-9
        assert HEIGHTS[0] <= sign.height <= HEIGHTS[1]
        assert sign.top >= 0
        assert sign.top + sign.height <= 1
        begins[int((sign.top + sign.height / 2) / CELL)] += 1
    assert set(begins) == {0, 1, 2, 3, 4, 5}
    assert all(abs(number - len(ALL) / 6) < 4 * (len(ALL) * 5 / 36) ** 0.5 for number in begins.values())


def test_ink_is_on_the_board_alone() -> None:
    for sign in ALL[::30]:
        ink = ink_of(sign, SIDE)
        top, bottom = SIDE * (sign.top - BORDER), SIDE * (sign.top + sign.height + BORDER)
        rows = np.arange(SIDE)
        assert not ink[(rows + 1 < top) | (rows > bottom)].any()


@pytest.mark.parametrize("split", SIGNS)
def test_characters_are_neither_cut_off_nor_overlap(split: str) -> None:
    """A sign has all the ink of its characters one by one, and these as much as they have in the middle."""
    outermost = sorted(SIGNS[split], key=lambda sign: ("W" in (sign.text[0], sign.text[-1]), len(sign.text)))[-10:]
    for sign in [*SIGNS[split][::100], *outermost]:
        alone = [only(sign, text, middle) for text, middle in zip(sign.text, sign.middles, strict=True)]
        inks = [ink_of(shown, SIDE) for shown in alone]
        assert ink_of(sign, SIDE) == pytest.approx(sum(inks), abs=0.02)
        for number in (0, -1):
            # A whole number of pixels away, a character falls on the same raster.
            middle = sign.middles[number] + round((0.5 - sign.middles[number]) * SIDE) / SIDE
            central = ink_of(only(sign, sign.text[number], middle), SIDE)
            assert inks[number].sum() == pytest.approx(central.sum(), rel=0.01)


def test_ink_differs_clearly_from_the_board() -> None:
    for sign in ALL:
        assert np.abs(np.subtract(sign.ink, sign.board)).sum() > 200
        assert sign.ink in {LIGHT, BLACK, *COLOURS.values()}
        assert sign.background in BACKGROUNDS[:-1]
        assert sign.board != sign.background
    light = sum(sign.ink == LIGHT for sign in ALL)
    assert abs(light - 0.3 * len(ALL)) < 4 * (len(ALL) * 0.21) ** 0.5


def test_the_same_number_gives_the_same_sign() -> None:
    assert make_sign("test", 3) == make_sign("test", 3) != make_sign("test", 4)
    with pytest.raises(ValueError, match="split='dev'"):
        make_sign("dev", 0)
