"""The benchmark suite: pictures of four families with a dozen kinds of questions, all made from seeds.

Nothing is stored: split, kind and number give the same example on every machine. The splits and what they hold out
are in `splits`, with a version that changes whenever an example does.

    example = evaluation_set("test", 12)[0]          # .messages with pictures, .answer
    dialogue = training_dialogue(0, {"scene": 1.0})  # .pictures, and .turns of several questions about them
"""

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from PIL import Image

from .charts import Chart, make_chart, render_chart
from .scene_changes import SceneChange, ask_change, ask_fuller, make_change
from .scene_questions import ASKERS, Question, facts, relations
from .shape_scenes import COLOURS, Scene, make_scene, render_scene
from .signs import Sign, make_sign, render_sign
from .splits import SPLIT_SEEDS, split_seed

PICTURE_SIDE = 96
THINK, NO_THINK = " /think", " /no_think"
ANSWER_MARK = "Answer: "
SPLITS = tuple(SPLIT_SEEDS)
KINDS = (
    "colour", "shape", "position", "relation", "existence", "count", "comparison", "caption", "dialogue", "ocr",
    "chart", "change", "reasoned",
)  # fmt: skip
_SCENE_KINDS = ("colour", "shape", "position", "relation", "existence", "count", "comparison", "caption", "dialogue")
KINDS_OF_SPLIT: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("validation", "test", "demo", "train"), KINDS),
    "unseen_pairs": ("colour", "shape", "position", "existence", "caption"),
    "more_objects": (*_SCENE_KINDS, "reasoned"),
    "unseen_fonts": ("ocr",),
}

World = Scene | Sign | Chart | SceneChange


@dataclass(frozen=True)
class Example:
    """A question of the suite.

    Attributes:
        id: such as "test/colour/17".
        kind: one of `KINDS`.
        messages: the chat up to the last question, with its pictures.
        answer: the expected last answer.
        mark: where a reply holds this text, what stands before and in it is reasoning and not compared.
    """

    id: str
    kind: str
    messages: list[dict[str, Any]]
    answer: str
    mark: str | None = None


@dataclass(frozen=True)
class Dialogue:
    """Pictures and turns about them, for training.

    Attributes:
        pictures: one or two.
        turns: question and answer.
        world: what the pictures show.
    """

    pictures: list[Image.Image]
    turns: list[tuple[str, str]]
    world: World

    @property
    def messages(self) -> list[dict[str, Any]]:
        """The conversation, the pictures in its first message."""
        return chat(self.pictures, self.turns)


# Signs and charts


def _ask_ocr(sign: Sign, rng: random.Random) -> Question:
    what = "What number is on the sign?" if sign.text.isdigit() else "What does the sign say?"
    return Question("ocr", what, sign.text)


def _ask_character(sign: Sign, rng: random.Random) -> Question:
    name, position = rng.choice((("first", 0), ("second", 1), ("last", -1)))
    return Question("character", f"What is the {name} character?", sign.text[position])


def _ask_value(chart: Chart, rng: random.Random) -> Question:
    colour, value = rng.choice(list(zip(chart.colours, chart.values, strict=True)))
    return Question("chart", f"What is the value of the {colour} bar?", str(value))


def _ask_extreme(chart: Chart, rng: random.Random) -> Question | None:
    """The colour of the highest or the lowest bar, where it is the only one; or its value."""
    name, value = rng.choice((("highest", max(chart.values)), ("lowest", min(chart.values))))
    if rng.random() < 0.4:
        return Question("chart", f"What is the {name} value?", str(value), reasoning=chart.layout)
    if chart.values.count(value) > 1:
        return None
    colour = chart.colours[chart.values.index(value)]
    return Question("chart", f"Which bar is the {name}?", colour, reasoning=chart.layout)


def _ask_difference(chart: Chart, rng: random.Random) -> Question | None:
    bars = list(zip(chart.colours, chart.values, strict=True))
    (larger, high), (smaller, low) = sorted(rng.sample(bars, 2), key=lambda bar: -bar[1])
    if high == low:
        return None
    question = f"How much higher is the {larger} bar than the {smaller} bar?"
    return Question("chart", question, str(high - low), reasoning=f"{larger} {high}, {smaller} {low}")


def _ask_chart(chart: Chart, rng: random.Random) -> Question | None:
    """Value, extreme or difference, evenly; None where bars that are compared are equal."""
    return rng.choice((_ask_value, _ask_extreme, _ask_difference))(chart, rng)


def _ask_bars(chart: Chart, rng: random.Random) -> Question:
    return Question("bars", "Read the chart.", chart.layout)


@dataclass(frozen=True)
class Family:
    """A kind of picture.

    Attributes:
        make: split and index to what is shown.
        pictures: what is shown to pictures.
        askers: kinds of questions.
    """

    make: Callable[[str, int], Any]
    pictures: Callable[[Any], list[Image.Image]]
    askers: dict[str, Callable[[Any, random.Random], Question | None]]


FAMILIES: dict[str, Family] = {
    "scene": Family(make_scene, lambda scene: [render_scene(scene, PICTURE_SIDE)], ASKERS),
    "sign": Family(
        make_sign, lambda sign: [render_sign(sign, PICTURE_SIDE)], {"ocr": _ask_ocr, "character": _ask_character}
    ),
    "chart": Family(
        make_chart, lambda chart: [render_chart(chart, PICTURE_SIDE)], {"chart": _ask_chart, "bars": _ask_bars}
    ),
    "change": Family(
        make_change,
        lambda change: [render_scene(scene, PICTURE_SIDE) for scene in (change.before, change.after)],
        {"change": ask_change, "fuller": ask_fuller},
    ),
}
_FAMILY_OF_KIND = {kind: name for name, family in FAMILIES.items() for kind in family.askers}


# Evaluation


def chat(pictures: Sequence[Image.Image], turns: Sequence[tuple[str, str | None]]) -> list[dict[str, Any]]:
    """A conversation, with the pictures in its first message; a last answer of None is left out.

    Args:
        pictures: what it is about.
        turns: question and answer.

    Returns:
        The messages.
    """
    messages: list[dict[str, Any]] = []
    for number, (question, answer) in enumerate(turns):
        content: list[dict[str, Any]] = [{"type": "text", "text": question}]
        if number == 0:
            content = [*({"type": "image", "image": picture} for picture in pictures), *content]
        messages.append({"role": "user", "content": content})
        if answer is not None:
            messages.append({"role": "assistant", "content": [{"type": "text", "text": answer}]})
    return messages


def example(split: str, kind: str, index: int) -> Example | None:
    """Make an example.

    Args:
        split: one of `SPLITS`.
        kind: one of `KINDS`.
        index: of its picture.

    Returns:
        The example; None where the picture does not allow a question of the kind.

    Raises:
        ValueError: if there is no such split, kind or index.
    """
    if kind not in KINDS:
        raise ValueError(f"kind={kind!r} is not a kind of question; pass one of {', '.join(KINDS)}")
    rng = random.Random(f"question {kind} {split_seed(split, index)}")
    asked = "count" if kind == "reasoned" else kind
    family = FAMILIES[_FAMILY_OF_KIND[asked]]
    world = family.make(split, index)
    question = family.askers[asked](world, rng)
    if question is None:
        return None
    text = question.text + (THINK if kind == "reasoned" else "")
    messages = chat(family.pictures(world), [*question.before, (text, None)])
    mark = ANSWER_MARK if kind == "reasoned" else None
    return Example(f"{split}/{kind}/{index}", kind, messages, question.answer, mark)


def evaluation_set(split: str, count: int, kinds: Sequence[str] | None = None) -> list[Example]:
    """The first examples of a split, the kinds in turn; a shorter set is a prefix of a longer one.

    Args:
        split: one of `SPLITS`.
        count: how many.
        kinds: which; all that the split asks by default.

    Returns:
        The examples; each kind has pictures of its own.

    Raises:
        ValueError: if there is no such split, it does not ask for a kind, a kind is named twice or none is, or the
            split has fewer examples.
    """
    split_seed(split, 0)
    asked = KINDS_OF_SPLIT[split] if kinds is None else tuple(kinds)
    if unknown := [kind for kind in asked if kind not in KINDS_OF_SPLIT[split]]:
        raise ValueError(
            f"kinds={unknown} are not asked in the split {split!r}; pass some of {', '.join(KINDS_OF_SPLIT[split])}"
        )
    if not asked or len(set(asked)) < len(asked):
        raise ValueError(f"kinds={list(asked)} must name each kind once, and one at least; leave kinds out to ask all")
    streams = [_examples(split, kind) for kind in asked]
    examples: list[Example] = []
    for number in range(count):
        found = next(streams[number % len(streams)], None)
        if found is None:
            raise ValueError(f"count={count} is more than the split {split!r} has of these kinds; pass count={number}")
        examples.append(found)
    return examples


def _examples(split: str, kind: str) -> Iterator[Example]:
    # Kinds take every so many pictures, whatever kinds are asked: no two share a scene.
    for index in range(KINDS.index(kind), len(SPLIT_SEEDS[split]), len(KINDS)):
        if (found := example(split, kind, index)) is not None:
            yield found


# Training

TEXTS_OF_SCENES = {
    "facts": ("Describe the shapes.", facts), "relations": ("Which shape is left of which?", relations),
}  # fmt: skip
SCENE_WEIGHTS = {
    "colour": 2.0, "shape": 2.0, "position": 4.0, "relation": 4.0, "existence": 3.0, "count": 2.0, "comparison": 2.0,
    "dialogue": 2.0,
}  # fmt: skip
FAMILY_WEIGHTS: dict[str, dict[str, float]] = {
    "scene": SCENE_WEIGHTS,
    "sign": {"ocr": 1.0, "character": 1.0},
    "chart": {"chart": 5.0, "bars": 1.0},
    "change": {"change": 2.0, "fuller": 1.0},
}


def long_answer(world: World, rng: random.Random) -> Question:
    """A question whose answer says all that a picture shows.

    Args:
        world: what it shows.
        rng: chooses between describing a scene and reading its grid.

    Returns:
        The question.
    """
    if isinstance(world, Scene):
        question = ASKERS[rng.choice(("caption", "reading"))](world, rng)
        assert question is not None  # every scene can be described
        return question
    if isinstance(world, Sign):
        return _ask_ocr(world, rng)
    return _ask_bars(world, rng) if isinstance(world, Chart) else ask_change(world, rng)


def training_text(kind: str, world: World, rng: random.Random) -> tuple[str, str]:
    """A request for a text about a picture, and the text.

    Args:
        kind: "facts" or "relations" of a scene, or "whole" for one that says all that a picture shows in sentences.
        world: what it shows.
        rng: chooses the text.

    Returns:
        Both.

    Raises:
        ValueError: if there is no such text about it.
    """
    if kind == "whole":
        question = long_answer(world, rng)
        return question.text, question.answer
    if kind not in TEXTS_OF_SCENES or not isinstance(world, Scene):
        wanted = " or ".join(f'"{name}"' for name in TEXTS_OF_SCENES)
        raise ValueError(f'kind={kind!r} of a {type(world).__name__}; pass "whole", or {wanted} of a Scene')
    request, text = TEXTS_OF_SCENES[kind]
    return request, text(world, rng)


def training_dialogue(
    index: int,
    families: Mapping[str, float],
    turns: int = 5,
    seed: int = 0,
    reasoned: float = 0.0,
    long: float = 0.15,
    kinds: Mapping[str, float] | None = None,
) -> Dialogue:
    """Make the training sample number `index`: pictures and several questions about them.

    Args:
        index: from 0; of the train split.
        families: how often each family is drawn, relative to the others.
        turns: how many questions at most; a question that needs another before it counts as one.
        seed: of the draws, to ask other questions about the same pictures.
        reasoned: share of the samples in which all questions carry /think or /no_think; most of those that have
            something to list are reasoned.
        long: share of the scenes that are only described or read whole.
        kinds: how often a scene is asked each kind of question, relative to the others, and nothing else; everything
            by default.

    Returns:
        The dialogue.
    """
    rng = random.Random(f"dialogue {seed} {index}")
    name = rng.choices(list(families), list(families.values()))[0]
    family = FAMILIES[name]
    world = family.make("train", index)
    tagged = rng.random() < reasoned
    if name == "scene" and not tagged and kinds is None and rng.random() < long:
        asked: list[Question | None] = [long_answer(world, rng)]
    else:
        weights = kinds if kinds is not None and name == "scene" else FAMILY_WEIGHTS[name]
        wanted = rng.choices(list(weights), list(weights.values()), k=turns)
        asked = [family.askers[kind](world, rng) for kind in wanted]
    told: dict[str, str] = {}
    for question in asked:
        if question is not None:
            _tell(told, question, tagged, rng)
    if not told:
        _tell(told, long_answer(world, rng), tagged, rng)
    return Dialogue(family.pictures(world), list(told.items()), world)


def _tell(told: dict[str, str], question: Question, tagged: bool, rng: random.Random) -> None:
    """Add a question to the turns, unless it was asked, or what it follows on was and other turns came between."""
    text, answer = _reasoned(question, rng) if tagged else (question.text, question.answer)
    before = [(earlier + NO_THINK if tagged else earlier, reply) for earlier, reply in question.before]
    last = next(reversed(told), None)
    if text not in told and all(earlier not in told or earlier == last for earlier, _ in before):
        told.update(before)
        told[text] = answer


def _reasoned(question: Question, rng: random.Random) -> tuple[str, str]:
    """Question and answer with a tag: six in ten of those that have reasoning show it."""
    if question.reasoning is not None and rng.random() < 0.6:
        return question.text + THINK, f"{question.reasoning}. {ANSWER_MARK}{question.answer}"
    return question.text + NO_THINK, question.answer


@lru_cache(maxsize=1)
def all_texts(samples: int = 3000) -> tuple[str, ...]:
    """Wordings to train a tokenizer on: questions and answers of training dialogues, without what signs say.

    Args:
        samples: how many dialogues.

    Returns:
        The texts, repeated as they occur.
    """
    texts: list[str] = [f" {name}" for name in COLOURS]
    for index in range(samples):
        families = {"scene": 3.0, "chart": 1.0, "change": 1.0, "sign": 0.3}
        dialogue = training_dialogue(index, families, reasoned=0.2)
        for question, answer in dialogue.turns:
            texts.append(question)
            if not isinstance(dialogue.world, Sign):
                texts.append(answer)
    return tuple(texts)
