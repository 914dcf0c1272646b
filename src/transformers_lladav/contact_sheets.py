"""Contact sheets: pictures in a table, each above what was asked about it and what was answered."""

from collections.abc import Sequence
from typing import NamedTuple

from PIL import Image, ImageDraw, ImageFont

RGB = tuple[int, int, int]
Line = tuple[str, RGB]

_INK: dict[str, RGB] = {
    "text": (32, 34, 38),
    "faint": (112, 116, 122),
    "right": (22, 128, 58),
    "wrong": (200, 34, 40),
}
_FRAME = (206, 208, 212)
_PAPER = (255, 255, 255)


class SheetRow(NamedTuple):
    """One entry of a contact sheet.

    Attributes:
        image: a picture, or any number of them, which stand side by side.
        question: a text; or the texts of several turns, a question and its answer in turn, up to the last question.
        expected: the right answer.
        given: a model's answer; None shows the expected one alone.
        is_right: whether it counts as right; by default if it is the expected one.
    """

    image: Image.Image | Sequence[Image.Image]
    question: str | Sequence[str]
    expected: str
    given: str | None = None
    is_right: bool | None = None


def contact_sheet(rows: Sequence[SheetRow], columns: int = 4, tile: int = 256) -> Image.Image:
    """Lay pictures out in a table, each above its question and answers: right ones green, wrong ones red.

    Args:
        rows: what to show, from left to right and from top to bottom.
        columns: how many stand side by side; no more than there are rows.
        tile: pixels along one side of a picture, or of all that stand side by side.

    Returns:
        An RGB picture as high as the texts need.

    Raises:
        ValueError: if there are no rows, or `columns` is below 1.
        ImportError: if Pillow was built without FreeType.
    """
    if not rows:
        raise ValueError("rows=[] makes no contact sheet; pass at least one SheetRow")
    if columns < 1:
        raise ValueError(f"columns={columns}; pass at least 1")
    columns = min(columns, len(rows))
    gap, line_height = tile // 12, tile // 12
    font = _font(tile / 16)
    bands = [rows[start : start + columns] for start in range(0, len(rows), columns)]
    shown = [[_strip(row, tile) for row in band] for band in bands]
    texts = [[_lines(row, font, tile) for row in band] for band in bands]
    # A band is as high as its highest pictures and its longest text.
    above = [max(strip.height for strip in band) for band in shown]
    heights = [high + gap // 2 + line_height * max(map(len, band)) for high, band in zip(above, texts, strict=True)]
    sheet = Image.new("RGB", (gap + columns * (tile + gap), gap + sum(heights) + gap * len(bands)), _PAPER)
    draw = ImageDraw.Draw(sheet)
    top = gap
    for strips, band_texts, high, height in zip(shown, texts, above, heights, strict=True):
        for column, (strip, lines) in enumerate(zip(strips, band_texts, strict=True)):
            left = gap + column * (tile + gap)
            sheet.paste(strip, (left, top))
            for number, (line, ink) in enumerate(lines):
                draw.text((left, top + high + gap // 2 + number * line_height), line, fill=ink, font=font)
        top += height + gap
    return sheet


def _strip(row: SheetRow, width: int) -> Image.Image:
    """The framed pictures of a row side by side, each in a square of one size, on paper; without any, no height."""
    pictures = [row.image] if isinstance(row.image, Image.Image) else list(row.image)
    gap = width // 24
    side = (width - (len(pictures) - 1) * gap) // len(pictures) if pictures else 0
    strip = Image.new("RGB", (width, side), _PAPER)
    draw = ImageDraw.Draw(strip)
    for number, picture in enumerate(pictures):
        left = number * (side + gap)
        scale = side / max(picture.size)
        across, down = (max(1, round(length * scale)) for length in picture.size)
        small = picture.convert("RGB").resize((across, down), Image.Resampling.LANCZOS)
        strip.paste(small, (left + (side - across) // 2, (side - down) // 2))
        draw.rectangle((left, 0, left + side - 1, side - 1), outline=_FRAME)
    return strip


def _lines(row: SheetRow, font: ImageFont.FreeTypeFont, width: int) -> list[Line]:
    """The lines under a picture with their inks; a wrong answer is followed by the expected one."""
    turns = [row.question] if isinstance(row.question, str) else row.question
    paragraphs = [(text, "faint" if number % 2 else "text") for number, text in enumerate(turns)]
    if row.given is None:
        paragraphs.append((row.expected, "faint"))
    elif row.given == row.expected if row.is_right is None else row.is_right:
        paragraphs.append((row.given, "right"))
    else:
        paragraphs += [(row.given.strip() or "(no answer)", "wrong"), (f"expected: {row.expected}", "faint")]
    return [(line, _INK[ink]) for text, ink in paragraphs for line in _wrap(text, font, width)]


def _wrap(text: str, font: ImageFont.FreeTypeFont, width: int) -> list[str]:
    """Break text between words, and a word only where it is wider than the tile, as babble can be."""
    lines: list[str] = []
    for word in text.split():
        if lines and font.getlength(f"{lines[-1]} {word}") <= width:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
        while len(line := lines[-1]) > 1 and font.getlength(line) > width:
            fits = max(1, next(end for end in range(len(line) - 1, -1, -1) if font.getlength(line[:end]) <= width))
            lines[-1:] = [line[:fits], line[fits:]]
    return lines


def _font(size: float) -> ImageFont.FreeTypeFont:
    font = ImageFont.load_default(size=size)
    if not isinstance(font, ImageFont.FreeTypeFont):
        raise ImportError("contact sheets need Pillow with FreeType; install a binary wheel: pip install pillow")
    return font
