"""Letters and digits: their skeletons, their styles, and the ink of a stroke in pixels."""

import random
import string

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont

from transformers_lladav.lettering import CHARACTERS, POLYLINES, Style, draw_style, write

PLAIN = Style(weight=0.1, width=0.5, slant=0.0, rounding=0)
TYPEFACE = Style(weight=0.1, width=0.5, slant=0.0, rounding=0, typeface=True)
HEIGHT, MIDDLE, TOP, SIDE = 100, 100, 50, 200


def ink_of(character: str, style: Style) -> np.ndarray:
    """Where a black character is on a white square of 200 pixels, 100 high from 50 down, around the middle."""
    canvas = Image.new("RGB", (SIDE, SIDE), "white")
    write(ImageDraw.Draw(canvas), character, MIDDLE, TOP, HEIGHT, style, (0, 0, 0))
    return np.asarray(canvas)[:, :, 0] < 128


def box_of(ink: np.ndarray) -> tuple[int, int, int, int]:
    """Left, top, right and bottom of the ink, ends excluded."""
    rows, columns = np.nonzero(ink)
    return int(columns.min()), int(rows.min()), int(columns.max()) + 1, int(rows.max()) + 1


def test_every_capital_and_digit_has_a_skeleton_on_the_field() -> None:
    assert sorted(CHARACTERS) == sorted(string.ascii_uppercase + string.digits)
    for strokes in POLYLINES.values():
        assert all(len(stroke) >= 2 for stroke in strokes)
        points = [point for stroke in strokes for point in stroke]
        assert all(0 <= x <= 4 and 0 <= y <= 6 for x, y in points)
        assert {min(y for _, y in points), max(y for _, y in points)} == {0, 6}


def test_only_the_letter_o_and_the_digit_look_alike() -> None:
    drawn = {character: ink_of(character, PLAIN) for character in CHARACTERS}
    alike = [
        {a, b} for a in CHARACTERS for b in CHARACTERS if a < b and (drawn[a] ^ drawn[b]).sum() < 0.1 * drawn[a].sum()
    ]
    assert alike == [{"0", "O"}]


def test_a_letter_fills_its_box() -> None:
    # 25 pixels to either side, and half a pen of 10 pixels outside; Pillow rounds to whole pixels.
    assert box_of(ink_of("H", PLAIN)) == pytest.approx((70, 50, 130, 150), abs=1)
    assert box_of(ink_of("I", PLAIN)) == pytest.approx((95, 50, 105, 150), abs=1)
    wide = Style(weight=0.2, width=0.6, slant=0.0, rounding=0)
    assert box_of(ink_of("H", wide)) == pytest.approx((60, 50, 140, 150), abs=1)


@pytest.mark.parametrize("character", CHARACTERS)
def test_no_ink_is_outside_of_the_box(character: str) -> None:
    rng = random.Random(character)
    for _ in range(10):
        style = draw_style(rng)
        left, top, right, bottom = box_of(ink_of(character, style))
        reach = HEIGHT * (style.width / 2 + style.weight / 2 + abs(style.slant) / 2)
        assert MIDDLE - reach - 1.5 <= left
        assert right <= MIDDLE + reach + 1.5
        assert top >= TOP - 1.5
        assert bottom <= TOP + HEIGHT + 1.5


def test_weight_is_the_width_of_a_stroke() -> None:
    for weight in (0.09, 0.12, 0.2):
        row = ink_of("I", Style(weight, 0.5, 0.0, 0))[TOP + HEIGHT // 2]
        assert row.sum() == pytest.approx(HEIGHT * weight, abs=1)


def test_slant_leans_the_top_to_the_right() -> None:
    ink = ink_of("I", Style(0.1, 0.5, 0.2, 0))
    upper, lower = (np.flatnonzero(ink[row]).mean() for row in (TOP + 10, TOP + HEIGHT - 10))
    # From top to bottom, the pen's middle moves by slant x height over height - pen; here over 80 of those 90 pixels.
    assert upper - lower == pytest.approx(20 * 80 / 90, abs=1)


def test_rounding_cuts_a_quarter_off_corners() -> None:
    """Of an L 60 wide and 100 high, the cut runs from 25 above the corner to 15 right of it."""
    sharp, cut = (ink_of("L", Style(0.02, 0.6, 0.0, rounding)) for rounding in (0, 1))
    assert box_of(sharp) == pytest.approx(box_of(cut), abs=1)
    corner = (slice(TOP + 90, TOP + 101), slice(MIDDLE - 31, MIDDLE - 24))
    assert sharp[corner].any()
    assert not cut[corner].any()
    across, down = MIDDLE - 22, TOP + 87
    assert cut[down - 3 : down + 4, across - 3 : across + 4].any()
    assert not sharp[down - 3 : down + 4, across - 3 : across + 4].any()


def test_styles_cover_their_ranges() -> None:
    rng = random.Random(0)
    styles = [draw_style(rng) for _ in range(3000)]
    for name, low, high in (("weight", 0.09, 0.2), ("width", 0.46, 0.62)):
        values = [getattr(style, name) for style in styles]
        assert low <= min(values) < low + 0.01
        assert high - 0.01 < max(values) <= high
    upright = sum(style.slant == 0 for style in styles)
    assert abs(upright - 2000) < 104  # two of three; four standard deviations
    assert all(-0.1 <= style.slant <= 0.2 for style in styles)
    assert {style.rounding for style in styles} == {0, 1, 2}
    assert not any(style.typeface for style in styles)


def test_the_unseen_style_is_the_typeface_and_draws_as_often() -> None:
    seen, unseen = random.Random(1), random.Random(1)
    draw_style(seen)
    assert draw_style(unseen, unseen=True).typeface
    assert seen.getstate() == unseen.getstate()


def test_the_typeface_is_as_high_and_no_wider_than_its_place() -> None:
    for character in CHARACTERS:
        left, top, right, bottom = box_of(ink_of(character, TYPEFACE))
        # Round characters reach a little over the lines; the tail of Q below them.
        assert top == pytest.approx(TOP, abs=3)
        assert bottom == pytest.approx(TOP + HEIGHT, abs=15 if character == "Q" else 3)
        assert right - left <= 80
        assert (left + right) / 2 == pytest.approx(MIDDLE, abs=8)


def test_pillow_without_freetype_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ImageFont, "load_default", lambda size: ImageFont.ImageFont())
    with pytest.raises(ImportError, match=r"typeface needs Pillow with FreeType; .* pip install pillow"):
        ink_of("A", TYPEFACE)
