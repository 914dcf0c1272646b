"""Frames of an animation, painted with Pillow: a picture, a question, and an answer coming out of its masks."""

import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from .streaming import TokenState

Colour = tuple[int, int, int]
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

PAPER, INK, MUTED, RULE = (255, 255, 255), (28, 30, 34), (112, 116, 124), (226, 228, 233)
MASK = (222, 225, 231)
FRESH_PAPER, FRESH_INK = (208, 240, 219), (12, 92, 46)
PICTURE_SHARE = 0.4  # of the width between the margins
FONT_PARTS = {"question": 44, "answer": 34, "step": 60}  # of the width
# Looked for by Pillow in the folders of the system; those with most letters first.
SYSTEM_FONTS = (
    "NotoSansCJK-Regular.ttc",
    "Arial Unicode.ttf",
    "msyh.ttc",
    "DejaVuSans.ttf",
    "NotoSans-Regular.ttf",
    "arial.ttf",
)
SMALLEST_LETTERS = 12  # pixels
SHADES = 12  # between paper and ink, for smooth letters
PICTURE_COLOURS = 256 - 3 * SHADES - 8


@dataclass(frozen=True)
class Box:
    """A part of a cell's text with its place: top left corner, relative to the text, and width."""

    cell: int
    text: str
    left: float
    top: float
    width: float


def paint_frames(
    picture: Image.Image,
    question: str,
    texts: Sequence[str],
    states: Sequence[Sequence[TokenState]],
    width: int,
    font: str | Path | None = None,
) -> list[Image.Image]:
    """Paint an animation whose layout is that of the finished answer in every frame.

    Args:
        picture: in RGB.
        question: what was asked.
        texts: the cells of the finished answer.
        states: for each frame, what each cell is in it: all masks, after each step, and the last once more to stay.
        width: of the frames in pixels.
        font: a font file; by default Pillow's own font, or one of the system's for letters that it lacks.

    Returns:
        Pictures of one size with one palette.
    """
    stage = _Stage(picture, question, texts, width, font)
    steps = len(states) - 2
    return [stage.frame(min(index, steps), steps, row) for index, row in enumerate(states)]


class _Stage:
    """Everything that stays the same over the frames."""

    def __init__(
        self, picture: Image.Image, question: str, texts: Sequence[str], width: int, font: str | Path | None
    ) -> None:
        self.margin = width // 28
        side = int(PICTURE_SHARE * (width - 3 * self.margin))
        scale = min(side / picture.width, 1.25 * side / picture.height)
        size = (max(1, round(scale * picture.width)), max(1, round(scale * picture.height)))
        scaled = picture.resize(size, Image.Resampling.LANCZOS)
        self.left, self.right = scaled.width + 2 * self.margin, width - self.margin
        sizes = {name: max(width / part, SMALLEST_LETTERS) for name, part in FONT_PARTS.items()}
        font = font or _system_font("".join([question, *texts]))
        self.fonts = {name: _load(font, size) for name, size in sizes.items()}
        self.leading = {name: round(1.5 * size) for name, size in sizes.items()}
        column = self.right - self.left
        self.question = place([question], self.fonts["question"], column, self.leading["question"])
        self.boxes = place(texts, self.fonts["answer"], column, self.leading["answer"])
        self.answer_top = self.margin + _bottom(self.question, self.leading["question"]) + self.margin // 2
        text_bottom = self.answer_top + _bottom(self.boxes, self.leading["answer"])
        footer = self.margin // 2 + self.leading["step"]
        self.bottom = max(self.margin + scaled.height, text_bottom + footer)
        self.size = (width, self.bottom + self.margin)
        self.palette = _palette(scaled)
        self.picture = scaled.quantize(palette=self.palette, dither=Image.Dither.FLOYDSTEINBERG)

    def frame(self, index: int, steps: int, states: Sequence[TokenState]) -> Image.Image:
        """Paint one frame: letters in RGB without dithering, then the picture over its place."""
        image = Image.new("RGB", self.size, PAPER)
        draw = ImageDraw.Draw(image)
        for box in self.question:
            corner = (self.left + box.left, self.margin + box.top)
            draw.text(corner, box.text, fill=MUTED, font=self.fonts["question"])
        for box in self.boxes:
            self._cell(draw, box, states[box.cell])
        self._progress(draw, index, steps)
        painted = image.quantize(palette=self.palette, dither=Image.Dither.NONE)
        painted.paste(self.picture, (self.margin, self.margin))
        return painted

    def _cell(self, draw: ImageDraw.ImageDraw, box: Box, state: TokenState) -> None:
        left, top, leading = self.left + box.left, self.answer_top + box.top, self.leading["answer"]
        if state != TokenState.COMMITTED:
            area = (left + 1, top + 0.06 * leading, left + max(box.width - 1, 2), top + 0.88 * leading)
            colour = MASK if state == TokenState.MASKED else FRESH_PAPER
            draw.rounded_rectangle(area, radius=leading // 8, fill=colour)
        if state != TokenState.MASKED:
            ink = INK if state == TokenState.COMMITTED else FRESH_INK
            draw.text((left, top + leading / 14), box.text, fill=ink, font=self.fonts["answer"])

    def _progress(self, draw: ImageDraw.ImageDraw, index: int, steps: int) -> None:
        thickness = max(3, self.margin // 8)
        bar = (self.left, self.bottom - thickness, self.right, self.bottom - 1)
        draw.rectangle(bar, fill=RULE)
        if index:
            draw.rectangle((bar[0], bar[1], bar[0] + (bar[2] - bar[0]) * index / steps, bar[3]), fill=FRESH_INK)
        label = (self.left, self.bottom - thickness - self.leading["step"])
        draw.text(label, f"step {index} / {steps}", fill=MUTED, font=self.fonts["step"])


def _system_font(text: str) -> str | None:
    """A font of this system for text that Pillow's own, which has ASCII only, cannot show; None if there is none."""
    if text.isascii():
        return None
    for name in SYSTEM_FONTS:
        with suppress(OSError):
            ImageFont.truetype(name, 10)
            return name
    return None


def _load(font: str | Path | None, size: float) -> Font:
    return ImageFont.load_default(size=size) if font is None else ImageFont.truetype(str(font), size)


def place(texts: Sequence[str], font: Font, width: float, leading: int) -> list[Box]:
    """Set text in lines, broken between words, and inside a word only where it is wider than a line.

    Args:
        texts: of the cells; words may run over several of them.
        font: to measure with.
        width: of a line.
        leading: from line to line.

    Returns:
        The visible parts of the cells with their places.
    """
    boxes: list[Box] = []
    left, top = 0.0, 0
    for word in _words(texts):
        whole = "".join(text for _, text in word)
        if whole == "\n":
            left, top = 0.0, top + leading
            continue
        if whole.isspace():
            left += font.getlength(whole.replace("\t", "    ")) if boxes else 0
            continue
        if left and left + font.getlength(whole) > width:
            left, top = 0.0, top + leading
        for cell, text in word:
            for part in _parts(text, font, width):
                length = font.getlength(part)
                if left and left + length > width + 0.5:
                    left, top = 0.0, top + leading
                boxes.append(Box(cell, part, left, top, length))
                left += length
    return boxes


def _words(texts: Sequence[str]) -> list[list[tuple[int, str]]]:
    """Line breaks, spaces and words, each as its parts with their cells."""
    words: list[list[tuple[int, str]]] = []
    open_word = False
    for cell, text in enumerate(texts):
        for part in re.findall(r"\n|[^\S\n]+|\S+", text):
            visible = not part.isspace()
            if visible and open_word:
                words[-1].append((cell, part))
            else:
                words.append([(cell, part)])
            open_word = visible
    return words


def _parts(text: str, font: Font, width: float) -> list[str]:
    """A text in as few parts as fit into a line each."""
    parts = [""]
    for character in text:
        if parts[-1] and font.getlength(parts[-1] + character) > width:
            parts.append("")
        parts[-1] += character
    return parts


def _bottom(boxes: list[Box], leading: int) -> int:
    return int(max((box.top for box in boxes), default=0)) + leading


def _palette(picture: Image.Image) -> Image.Image:
    """The picture's main colours, and every shade that letters and blocks need."""
    shades = [MASK, RULE, FRESH_PAPER, PAPER, FRESH_INK]
    for paper, ink in ((PAPER, INK), (PAPER, MUTED), (FRESH_PAPER, FRESH_INK)):
        shades += [_between(paper, ink, step / SHADES) for step in range(1, SHADES + 1)]
    main = picture.quantize(PICTURE_COLOURS, kmeans=1).getpalette() or []
    holder = Image.new("P", (1, 1))
    holder.putpalette([*(channel for shade in shades for channel in shade), *main[: 3 * PICTURE_COLOURS]])
    return holder


def _between(start: Colour, end: Colour, share: float) -> Colour:
    red, green, blue = (round(a + share * (b - a)) for a, b in zip(start, end, strict=True))
    return red, green, blue
