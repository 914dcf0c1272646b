"""A fresh scene, three questions and a caption: what the bundled checkpoint says, beside what is true."""

import random
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

from .asking import Assistant, ask
from .scene_questions import ASKERS
from .shape_scenes import Scene, make_scene, render_scene

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

DEMO_QUESTIONS = 3
DEMO_KINDS = ("colour", "shape", "position", "relation", "existence", "count", "comparison")
PICTURE_SIDE = 256
CARD_PICTURE, CARD_TEXT_WIDTH, CARD_MARGIN = 420, 640, 32
INK, MUTED, RIGHT, WRONG = (28, 30, 34), (120, 124, 132), (24, 128, 60), (196, 40, 44)


@dataclass(frozen=True)
class DemoRow:
    """One question of the demo.

    Attributes:
        question: its text.
        expected: the true answer.
        given: the model's answer.
        tokens_per_forward: of its generation.
    """

    question: str
    expected: str
    given: str
    tokens_per_forward: float

    @property
    def right(self) -> bool:
        """Whether the answer is right to the letter."""
        return self.given == self.expected


def run_demo(assistant: Assistant, index: int) -> tuple[Scene, list[DemoRow]]:
    """Ask about a scene of the demo split, whose content no training scene has.

    Args:
        assistant: a loaded checkpoint.
        index: which scene.

    Returns:
        The scene, and three questions of different kinds and the caption with their answers.
    """
    scene = make_scene("demo", index)
    picture = render_scene(scene, PICTURE_SIDE)
    rng = random.Random(index)
    possible = [question for kind in DEMO_KINDS if (question := ASKERS[kind](scene, rng)) is not None]
    asked = [*rng.sample(possible, DEMO_QUESTIONS), ASKERS["caption"](scene, rng)]
    rows = []
    for question in filter(None, asked):
        answer = ask(assistant, picture, question.text)
        rows.append(DemoRow(question.text, question.answer, answer.text, answer.tokens_per_forward))
    return scene, rows


def answer_card(picture: Image.Image, rows: list[DemoRow]) -> Image.Image:
    """The picture with its questions and answers beside it.

    Args:
        picture: any size; it is shown as a square.
        rows: the questions and answers.

    Returns:
        An RGB picture; right answers are green, wrong ones red with the true answer below.
    """
    bold, plain = ImageFont.load_default(size=20), ImageFont.load_default(size=22)
    width = CARD_PICTURE + CARD_TEXT_WIDTH + 3 * CARD_MARGIN
    lines: list[tuple[str, tuple[int, int, int], Font, int]] = []
    for row in rows:
        lines.append((row.question, MUTED, bold, 28))
        for text in _wrapped(row.given or "(no answer)", plain):
            lines.append((text, RIGHT if row.right else WRONG, plain, 30))
        if not row.right:
            for text in _wrapped(f"true answer: {row.expected}", bold):
                lines.append((text, MUTED, bold, 26))
        lines.append(("", INK, plain, 18))
    height = max(CARD_PICTURE, sum(step for *_, step in lines)) + 2 * CARD_MARGIN
    card = Image.new("RGB", (width, height), (255, 255, 255))
    card.paste(picture.resize((CARD_PICTURE, CARD_PICTURE), Image.Resampling.LANCZOS), (CARD_MARGIN, CARD_MARGIN))
    draw = ImageDraw.Draw(card)
    frame = (CARD_MARGIN - 1, CARD_MARGIN - 1, CARD_MARGIN + CARD_PICTURE, CARD_MARGIN + CARD_PICTURE)
    draw.rectangle(frame, outline=(210, 212, 216))
    top = CARD_MARGIN
    for text, colour, font, step in lines:
        draw.text((CARD_PICTURE + 2 * CARD_MARGIN, top), text, fill=colour, font=font)
        top += step
    return card


def _wrapped(text: str, font: Font) -> list[str]:
    lines, current = [], ""
    for word in text.split():
        longer = f"{current} {word}".strip()
        if current and font.getlength(longer) > CARD_TEXT_WIDTH:
            lines.append(current)
            longer = word
        current = longer
    return [*lines, current]
