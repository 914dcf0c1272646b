"""Contact sheets: where pictures and texts stand, and in which inks."""

import numpy as np
import pytest
from PIL import Image, ImageFont

from transformers_lladav.contact_sheets import SheetRow, contact_sheet

WHITE, RED, BLUE = (255, 255, 255), (200, 0, 0), (0, 0, 200)
TILE, GAP, LINE = 240, 20, 20  # a gap and a line of text are a twelfth of a tile


def sheet_rows(count: int, given_answer: str | None = None) -> list[SheetRow]:
    return [SheetRow(Image.new("RGB", (64, 64), "white"), "Who?", "red", given_answer) for _ in range(count)]


def box_of(sheet: Image.Image, colour: tuple[int, int, int]) -> tuple[int, int, int, int]:
    """Left, top, right and bottom of all pixels of a colour, ends excluded."""
    rows, columns = np.nonzero((np.asarray(sheet) == colour).all(axis=2))
    return int(columns.min()), int(rows.min()), int(columns.max()) + 1, int(rows.max()) + 1


def test_contact_sheet_grows_by_whole_rows() -> None:
    one, two = contact_sheet(sheet_rows(4), tile=TILE), contact_sheet(sheet_rows(5), tile=TILE)
    assert one.width == two.width == GAP + 4 * (TILE + GAP)
    assert two.height - GAP == 2 * (one.height - GAP)
    # A picture, half a gap, a line of question and a line of answer.
    assert one.height == GAP + TILE + GAP // 2 + 2 * LINE + GAP
    assert contact_sheet(sheet_rows(2), columns=8, tile=TILE).width == GAP + 2 * (TILE + GAP)


def test_contact_sheet_wraps_long_answers_within_the_tile() -> None:
    for long_answer in ("red " * 60, "red" * 60):
        short, tall = contact_sheet(sheet_rows(1, "red")), contact_sheet(sheet_rows(1, long_answer))
        assert tall.width == short.width
        assert tall.height > short.height + 60
        right_margin = np.asarray(tall)[:, -21:]
        assert (right_margin == 255).all()


@pytest.mark.parametrize(("answer", "channel"), [("red", 1), ("blue", 0)])
def test_right_answers_are_green_and_wrong_ones_red(answer: str, channel: int) -> None:
    pixels = np.asarray(contact_sheet(sheet_rows(1, answer))).astype(int)
    strongest = pixels[:, :, channel] - np.delete(pixels, channel, axis=2).max(axis=2)
    other = pixels[:, :, 1 - channel] - np.delete(pixels, 1 - channel, axis=2).max(axis=2)
    assert strongest.max() > 60
    assert other.max() < 10


def test_two_pictures_stand_side_by_side_in_one_tile() -> None:
    row = SheetRow([Image.new("RGB", (50, 50), RED), Image.new("RGB", (50, 50), BLUE)], "What changed?", "all")
    sheet = contact_sheet([row], tile=TILE)
    side = (TILE - TILE // 24) // 2
    # The frame hides a pixel on every edge.
    assert box_of(sheet, RED) == (GAP + 1, GAP + 1, GAP + side - 1, GAP + side - 1)
    assert box_of(sheet, BLUE) == (GAP + TILE - side + 1, GAP + 1, GAP + TILE - 1, GAP + side - 1)
    assert sheet.size == (GAP + TILE + GAP, GAP + side + GAP // 2 + 2 * LINE + GAP)


def test_texts_of_a_band_begin_below_its_highest_pictures() -> None:
    two = SheetRow([Image.new("RGB", (9, 9), WHITE)] * 2, "What?", "red")
    sheet = contact_sheet([two, *sheet_rows(1)], tile=TILE)
    assert sheet.height == contact_sheet(sheet_rows(1), tile=TILE).height
    texts = np.asarray(sheet)[GAP + TILE :]
    assert all((half < 128).any() for half in np.split(texts[:, : 2 * (sheet.width // 2)], 2, axis=1))


def test_a_list_of_one_picture_is_that_picture() -> None:
    (row,) = sheet_rows(1)
    assert contact_sheet([row._replace(image=[row.image])]).tobytes() == contact_sheet([row]).tobytes()


def test_pictures_keep_their_proportions_in_the_middle_of_their_square() -> None:
    wide = SheetRow(Image.new("RGB", (80, 20), RED), "Who?", "red")
    left, top, right, bottom = box_of(contact_sheet([wide], tile=TILE), RED)
    assert (right - left, bottom - top) == (TILE - 2, TILE // 4)
    assert (top - GAP, GAP + TILE - bottom) == (90, 90)
    thin = SheetRow(Image.new("RGB", (1, 1000), BLUE), "Who?", "red")
    assert contact_sheet([thin], tile=TILE).height == GAP + TILE + GAP // 2 + 2 * LINE + GAP


def test_a_question_without_pictures_takes_no_room_for_them() -> None:
    assert contact_sheet([SheetRow([], "Who?", "red")], tile=TILE).height == GAP + GAP // 2 + 2 * LINE + GAP


def test_every_turn_is_a_paragraph_and_earlier_answers_are_faint() -> None:
    (row,) = sheet_rows(1)
    turns = contact_sheet([row._replace(question=["Where is it?", "left", "And it?"])], tile=TILE)
    assert turns.height == contact_sheet([row], tile=TILE).height + 2 * LINE
    pixels = np.asarray(turns)[GAP + TILE + GAP // 2 :, GAP:]
    darkest = [int(pixels[LINE * line : LINE * (line + 1)].sum(axis=2).min()) for line in range(4)]
    dark, faint = 32 + 34 + 38, 112 + 116 + 122
    assert darkest == [dark, faint, dark, faint]


def test_an_empty_answer_is_shown_as_such() -> None:
    empty, spelt = contact_sheet(sheet_rows(1, " ")), contact_sheet(sheet_rows(1, "(no answer)"))
    assert empty.tobytes() == spelt.tobytes()


def test_an_empty_contact_sheet_is_refused() -> None:
    with pytest.raises(ValueError, match=r"rows=\[\] .* at least one SheetRow"):
        contact_sheet([])


def test_no_columns_are_refused() -> None:
    with pytest.raises(ValueError, match="columns=0; pass at least 1"):
        contact_sheet(sheet_rows(1), columns=0)


def test_pillow_without_freetype_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ImageFont, "load_default", lambda size: ImageFont.ImageFont())
    with pytest.raises(ImportError, match=r"need Pillow with FreeType; .* pip install pillow"):
        contact_sheet(sheet_rows(1))


def test_an_answer_that_counts_as_right_is_green_whatever_stands_around_it():
    """Such as one that comes after a listing."""

    def inks(**options):
        row = SheetRow(Image.new("RGB", (64, 64), "white"), "Who?", "red", "a star. Answer: red", **options)
        return {tuple(pixel) for pixel in np.asarray(contact_sheet([row])).reshape(-1, 3).tolist()}

    right, wrong = (22, 128, 58), (200, 34, 40)
    assert {right, wrong} & inks(is_right=True) == {right}
    assert {right, wrong} & inks(is_right=False) == {right, wrong} & inks() == {wrong}
