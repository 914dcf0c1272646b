"""What a model sees of an example, to look at: its prompt in spans, and a sheet of its pictures."""

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from .diffusion_lladav import IGNORE_INDEX
from .image_processing_lladav import open_picture
from .media import MAX_IMAGE_PIXELS, read_frames
from .prompt_view import PromptView
from .record_files import printable
from .records import Example

PAPER, FRAME, INK, FAINT = (255, 255, 255), (210, 210, 210), (30, 30, 30), (120, 120, 120)
FIRST_WORDS = 2  # lines of text under a picture


@dataclass(frozen=True)
class Span:
    """A stretch of a prompt.

    Attributes:
        text: as decoded; of a picture or video `<image x 729>`.
        learned: whether the loss looks at it.
        placeholder: whether it is a picture or video.
    """

    text: str
    learned: bool
    placeholder: bool = False


def prompt_spans(view: PromptView, processor: Any) -> list[Span]:
    """Cut a prompt where what is learned begins and ends, and at pictures.

    Args:
        view: the prompt, as from a `PromptViewer`.
        processor: the one it was made with.

    Returns:
        The spans in order; together they are the prompt.
    """
    names = {processor.image_token_id: processor.image_token, processor.video_token_id: processor.video_token}
    spans: list[Span] = []
    tokens = zip(view.input_ids.tolist(), (view.labels != IGNORE_INDEX).tolist(), view.widths.tolist(), strict=True)
    for (name, learned), run in groupby(tokens, key=lambda token: (names.get(token[0]), token[1])):
        if name is None:
            text = processor.tokenizer.decode([token_id for token_id, _, _ in run])
            spans.append(Span(printable(text), learned))
        else:
            spans += [Span(f"{name[:-1]} x {width}>", learned, placeholder=True) for _, _, width in run]
    return spans


def contact_sheet(
    examples: Sequence[Example], columns: int = 4, tile: int = 256, max_image_pixels: int = MAX_IMAGE_PIXELS
) -> Image.Image:
    """Lay out the pictures of examples, and the first frame of their videos, with ids and first words.

    Args:
        examples: in the order of the sheet.
        columns: at most so many beside each other.
        tile: side of the square a picture is fitted into, in pixels.
        max_image_pixels: larger pictures are refused, as when they are read.

    Returns:
        The sheet.

    Raises:
        ValueError: if the examples have no pictures, one cannot be read, or `columns` is below 1.
        ImportError: if there is a video file and PyAV is not installed.
    """
    if columns < 1:
        raise ValueError(f"columns={columns}; pass at least 1")
    entries = [entry for example in examples for entry in _entries(example, max_image_pixels)]
    if not entries:
        raise ValueError(f"no picture in {len(examples)} examples, so there is nothing to lay out")
    columns = min(columns, len(entries))
    gap, line = tile // 12, tile // 14
    font = ImageFont.load_default(size=tile / 18)
    cell = tile + gap // 2 + line * (1 + FIRST_WORDS)
    rows = -(-len(entries) // columns)
    sheet = Image.new("RGB", (gap + columns * (tile + gap), gap + rows * (cell + gap)), PAPER)
    draw = ImageDraw.Draw(sheet)
    for number, (picture, title, words) in enumerate(entries):
        row, column = divmod(number, columns)
        left, top = gap + column * (tile + gap), gap + row * (cell + gap)
        picture.thumbnail((tile, tile))
        sheet.paste(picture, (left + (tile - picture.width) // 2, top + (tile - picture.height) // 2))
        draw.rectangle((left - 1, top - 1, left + tile, top + tile), outline=FRAME)
        for position, text in enumerate([title, *_lines(words, font, tile)]):
            place = (left, top + tile + gap // 2 + position * line)
            draw.text(place, _fitted(text, font, tile), fill=INK if position else FAINT, font=font)
    return sheet


def _entries(example: Example, max_image_pixels: int) -> list[tuple[Image.Image, str, str]]:
    """Pictures of an example, each with a title and the example's first words."""
    words = next((_words(message) for message in example.messages if message["role"] == "user"), "")
    shown = [(picture, example.id) for picture in example.pictures]
    for video in example.videos:
        if isinstance(video, str):
            shown.append((read_frames(video, 1)[0], f"{example.id} (video)"))
        else:
            shown.append((video[0], f"{example.id} (video, {len(video)} frames)"))
    return [
        (open_picture(source, f"{example.source}: picture {number}", max_image_pixels).copy(), printable(title), words)
        for number, (source, title) in enumerate(shown, start=1)
    ]


def _words(message: dict[str, Any]) -> str:
    return printable(" ".join(part["text"] for part in message["content"] if part["type"] == "text"))


def _lines(words: str, font: Any, width: int) -> list[str]:
    """The first words in a few lines, three dots where more follow."""
    letters = max(8, int(width / font.getlength("n")))
    return textwrap.wrap(words, letters, max_lines=FIRST_WORDS, placeholder=" ...")


def _fitted(text: str, font: Any, width: int) -> str:
    """Text cut to a width in pixels."""
    text = " ".join(text.split())
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "...") > width:
        text = text[:-1]
    return text + "..."
