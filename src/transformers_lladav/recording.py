"""Recordings of answers that form: every step kept, then shown as an animated GIF or as a page that can be stepped.

recorder = Recorder(processor.tokenizer)
output = model.generate(**inputs, callback_on_step_end=recorder)
recorder.finish(question, picture).save_gif("answer.gif")
"""

import base64
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from PIL import Image, ImageOps

from .denoising_lladav import DenoisingStep
from .files import write_file, write_text
from .recording_film import paint_frames
from .recording_page import page
from .streaming import Draft, DraftDecoder, TokenState

LARGEST_EMBEDDED = 1024  # pixels on the longer side of the picture in a page
SHORTEST_STEP = 20  # milliseconds; viewers slow down whatever is shorter


@dataclass(frozen=True)
class Frame:
    """The answer after one step.

    Attributes:
        token_ids: one per slot, masks included.
        fresh: slots written in this step.
        confidence: per slot, of its token when it was committed; None for masks and for tokens that were given.
    """

    token_ids: tuple[int, ...]
    fresh: tuple[int, ...]
    confidence: tuple[float | None, ...]


@dataclass(frozen=True)
class Cell:
    """What is shown or hidden as one: a token, or the several tokens of one character.

    Attributes:
        text: in the finished answer, the leading space included.
        written: index of the frame that has it first; 0 if it was given, None if it stayed a mask.
        confidence: the lowest of its tokens.
    """

    text: str
    written: int | None
    confidence: float | None

    def state(self, frame: int) -> TokenState:
        """What the cell is in a frame."""
        if self.written is None or frame < self.written:
            return TokenState.MASKED
        return TokenState.FRESH if frame == self.written > 0 else TokenState.COMMITTED


@dataclass(frozen=True)
class Recording:
    """A finished recording.

    Attributes:
        frames: all masks first, then one per step.
        question: what was asked.
        answer: the finished answer.
        picture: what it was asked about.
        settings: figures to show, such as steps and tokens per forward.
        title: of the page.
        cells: the finished answer in pieces; slots from the end on have none.
    """

    frames: tuple[Frame, ...]
    question: str
    answer: str
    picture: Image.Image
    settings: Mapping[str, Any] = field(default_factory=dict)
    title: str = "An answer out of masks"
    cells: tuple[Cell, ...] = ()

    @property
    def steps(self) -> int:
        """How many steps the answer took."""
        return len(self.frames) - 1

    def save_gif(
        self,
        path: str | Path,
        width: int = 880,
        milliseconds_per_step: int = 350,
        hold: int = 2500,
        font: str | Path | None = None,
    ) -> None:
        """Write an animation that loops: the picture, the question, and the answer coming out of its masks.

        Args:
            path: a file that ends in .gif; missing parent folders are made.
            width: of the animation in pixels; the height follows.
            milliseconds_per_step: how long a frame stays.
            hold: milliseconds that the finished answer stays.
            font: a TrueType or OpenType file; by default Pillow's own, which has ASCII only, or one of the system.

        Raises:
            OSError: if the font cannot be read.
            ValueError: for another suffix, a width below 320, or a time below 20 milliseconds.
        """
        path = _checked(path, ".gif")
        if width < 320:
            raise ValueError(f"width={width} leaves no room for text; pass at least 320 pixels")
        if min(milliseconds_per_step, hold) < SHORTEST_STEP:
            raise ValueError(
                f"milliseconds_per_step={milliseconds_per_step} and hold={hold} must be at least {SHORTEST_STEP}: "
                "viewers do not show frames that are shorter"
            )
        # One frame more than there are steps: the answer that stays has nothing fresh in it.
        states = [[cell.state(frame) for cell in self.cells] for frame in range(len(self.frames) + 1)]
        texts = [cell.text for cell in self.cells]
        first, *others = paint_frames(_flat(self.picture), self.question, texts, states, width, font)
        durations = [milliseconds_per_step] * len(self.frames) + [hold]
        write_file(
            path,
            lambda scratch: first.save(
                scratch, format="GIF", save_all=True, append_images=others, duration=durations, loop=0
            ),
        )

    def save_html(self, path: str | Path) -> None:
        """Write one self-contained page that plays the answer and can be stepped through.

        Args:
            path: a file that ends in .html or .htm; missing parent folders are made.

        Raises:
            ValueError: for another suffix.
        """
        path = _checked(path, ".html", ".htm")
        cells = [{"text": cell.text, "written": cell.written, "confidence": cell.confidence} for cell in self.cells]
        content = {
            "title": self.title,
            "question": self.question,
            "answer": self.answer,
            "settings": {str(name): _figure(value) for name, value in self.settings.items()},
            "picture": _data_uri(self.picture),
            "steps": self.steps,
            "cells": cells,
        }
        write_text(path, page(content))


class Recorder:
    """Collects the frames of one sample; pass it as `callback_on_step_end`. A new run starts a new recording.

    Args:
        tokenizer: a tokenizer, or a processor that has one.
        mask_token_id: the mask; by default what the tokenizer has as "<|mdm_mask|>".
        end_token_ids: tokens that end an answer; by default the tokenizer's end of text and "<|eot_id|>".
        sample: which row of the batch.
        context_ids: for infilling, the whole answer with masks as holes; the canvas fills them in order, and nothing
            ends the answer but its own last token.

    Raises:
        ValueError: if no mask is given and the tokenizer has none.
    """

    def __init__(
        self,
        tokenizer: Any,
        mask_token_id: int | None = None,
        end_token_ids: Iterable[int] | None = None,
        sample: int = 0,
        context_ids: Sequence[int] | None = None,
    ) -> None:
        self.decoder = DraftDecoder(tokenizer, mask_token_id, end_token_ids if context_ids is None else ())
        self.sample = sample
        self.context_ids = None if context_ids is None else tuple(int(token_id) for token_id in context_ids)
        self.frames: list[Frame] = []

    def __call__(self, step: DenoisingStep) -> None:
        """Keep a step, if the sample took part in it.

        Args:
            step: from the loop.

        Raises:
            ValueError: if there are more holes than slots to fill them.
        """
        samples = step.samples.tolist()
        if self.sample not in samples:
            return
        row = samples.index(self.sample)
        canvas = step.tokens[self.sample].tolist()
        places = self._places(len(canvas))
        if step.block == step.step == 0 or not self.frames:
            self.frames = [self._blank(len(canvas))]
        token_ids, confidence = list(self.frames[-1].token_ids), list(self.frames[-1].confidence)
        fresh = []
        for position in step.committed[row].nonzero()[:, 0].tolist():
            place = places[step.start + position]
            token_ids[place] = canvas[step.start + position]
            value = float(step.confidence[row, position])
            confidence[place] = value if math.isfinite(value) else None
            fresh.append(place)
        self.frames.append(Frame(tuple(token_ids), tuple(fresh), tuple(confidence)))

    def draft(self) -> Draft:
        """The answer after the last step.

        Returns:
            Its pieces, those that were written with the confidence they were written with.

        Raises:
            ValueError: if there was no step.
        """
        self._check_recorded()
        frame = self.frames[-1]
        pieces = self.decoder.decode(frame.token_ids, frame.fresh, frame.confidence)
        return Draft(self.sample, pieces, done=all(piece.state != TokenState.MASKED for piece in pieces))

    def _check_recorded(self) -> None:
        if not self.frames:
            raise ValueError(
                f"no step of sample {self.sample} was recorded; pass the recorder to generate as callback_on_step_end"
            )

    def _places(self, canvas: int) -> Sequence[int]:
        """Where in the answer each slot of the canvas stands."""
        if self.context_ids is None:
            return range(canvas)
        holes = [place for place, token_id in enumerate(self.context_ids) if token_id == self.decoder.mask_token_id]
        if len(holes) > canvas:
            raise ValueError(f"context_ids has {len(holes)} holes for a canvas of {canvas}; pass the sample's own")
        return holes

    def _blank(self, canvas: int) -> Frame:
        token_ids = self.context_ids or (self.decoder.mask_token_id,) * canvas
        return Frame(token_ids, (), (None,) * len(token_ids))

    def finish(
        self,
        question: str,
        picture: Image.Image,
        settings: Mapping[str, Any] | None = None,
        title: str | None = None,
        length: int | None = None,
    ) -> Recording:
        """Make a recording of the steps so far.

        Args:
            question: what was asked.
            picture: what it was asked about.
            settings: figures to show, such as steps and tokens per forward.
            title: of the page.
            length: how many tokens belong to the answer, `len(output.answers[0])`; needed only where a stop string
                ends it, as end tokens are seen without.

        Returns:
            The recording.

        Raises:
            ValueError: if there was no step.
        """
        self._check_recorded()
        cells = self._cells(length)
        return Recording(
            frames=tuple(self.frames),
            question=question,
            answer="".join(cell.text for cell in cells),
            picture=picture,
            settings=dict(settings or {}),
            title=title or Recording.title,
            cells=cells,
        )

    def _cells(self, length: int | None) -> tuple[Cell, ...]:
        final = self.frames[-1]
        pieces = self.decoder.decode(final.token_ids[:length], confidence=final.confidence)
        written: list[float] = [math.inf if piece.state == TokenState.MASKED else 0 for piece in pieces]
        for index, frame in enumerate(self.frames):
            for slot in frame.fresh:
                if slot < len(written):
                    written[slot] = index
        # A cell ends with each token that has text; the tokens before it that have none make the same character.
        ends = [0, *(slot + 1 for slot, piece in enumerate(pieces) if piece.text)]
        cells = []
        for start, end in pairwise(ends):
            known = [piece.confidence for piece in pieces[start:end] if piece.confidence is not None]
            last = max(written[start:end])
            complete = None if math.isinf(last) else int(last)
            cells.append(Cell(pieces[end - 1].text, complete, min(known) if known else None))
        return tuple(cells)


def _checked(path: str | Path, *suffixes: str) -> Path:
    path = Path(path)
    if path.suffix.lower() not in suffixes:
        raise ValueError(f"{path} must end in {' or '.join(suffixes)}; choose another name")
    return path


def _flat(picture: Image.Image) -> Image.Image:
    """The picture upright, in RGB; what is transparent becomes white."""
    upright = ImageOps.exif_transpose(picture)
    if not upright.has_transparency_data:
        return upright.convert("RGB")
    white = Image.new("RGBA", upright.size, "white")
    return Image.alpha_composite(white, upright.convert("RGBA")).convert("RGB")


def _data_uri(picture: Image.Image) -> str:
    """The picture as PNG or JPEG, whichever is smaller."""
    flat = _flat(picture)
    flat.thumbnail((LARGEST_EMBEDDED, LARGEST_EMBEDDED), Image.Resampling.LANCZOS)
    coded = {}
    for kind in ("png", "jpeg"):
        buffer = io.BytesIO()
        flat.save(buffer, format=kind, optimize=True, quality=88)
        coded[kind] = buffer.getvalue()
    kind = min(coded, key=lambda name: len(coded[name]))
    return f"data:image/{kind};base64,{base64.b64encode(coded[kind]).decode()}"


def _figure(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
