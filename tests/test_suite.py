"""The suite: fixed for good by digests, fair in what it asks, and apart from what is trained."""

import random
import re
from collections import Counter
from collections.abc import Iterable
from functools import cache
from hashlib import blake2b

import PIL
import pytest
from PIL import Image

from scene_oracle import oracle
from transformers_lladav import suite
from transformers_lladav.charts import Chart, make_chart
from transformers_lladav.scene_changes import SceneChange
from transformers_lladav.scene_questions import facts, relations
from transformers_lladav.shape_scenes import COLOURS, HELD_OUT_PAIRS, SHAPES, Scene, make_scene
from transformers_lladav.signs import Sign
from transformers_lladav.splits import SUITE_VERSION
from transformers_lladav.suite import (
    ANSWER_MARK,
    FAMILIES,
    KINDS,
    KINDS_OF_SPLIT,
    NO_THINK,
    PICTURE_SIDE,
    SPLITS,
    THINK,
    Dialogue,
    Example,
    all_texts,
    chat,
    evaluation_set,
    example,
    long_answer,
    training_dialogue,
    training_text,
)

COUNT = 100  # of each split and kind
ALL_FAMILIES = {"scene": 4.0, "sign": 2.0, "chart": 2.0, "change": 2.0}

# Of the first 100 examples of every split that asks a kind: texts, and pictures.
VERSION = 2
DIGESTS: dict[str, tuple[str, str]] = {
    "colour": ("c949f032a6386307", "f45f05b77bddb612"),
    "shape": ("f56102bc36abf46f", "b87fb50715e2917c"),
    "position": ("8e92c7a1f00f5aad", "f6a82d4dafde6e23"),
    "relation": ("633c1e6ebaea9e49", "0eeab6679e82e603"),
    "existence": ("36707ff4730e4e2c", "53751f7455efbcfc"),
    "count": ("b533690bb7eaa6c6", "bd5ee03875fa7edd"),
    "comparison": ("ea3dd243932190b6", "d8c8952e59645bd6"),
    "caption": ("ebd2a05236d9983f", "6a66335ab0742e2e"),
    "dialogue": ("98b72c7366d19966", "85a1762ba532a8e8"),
    "ocr": ("efa6b89f80ddd880", "0f18a2049f203002"),
    "chart": ("5a6601e19fe88cdf", "e33c1a7c6f204161"),
    "change": ("d157fc47e35c7b0e", "2d2ce6a3074ba535"),
    "reasoned": ("645fe53c6d9971bf", "3536f2aad7017b60"),
}
TYPEFACE_PICTURES = "6f930e5878de8cd6"
TRAINING_TEXTS, TRAINING_PICTURES = "01e127eb9ac4c03d", "46759233880a8852"


same_drawing = pytest.mark.skipif(
    tuple(int(number) for number in PIL.__version__.split(".")[:2]) < (11, 2),
    reason="Pillow before 11.2 draws some edges of triangles a little differently",
)


@cache
def examples(split: str, kind: str) -> list[Example]:
    return evaluation_set(split, COUNT, [kind])


def dialogues(count: int, **options: float) -> list[Dialogue]:
    return [training_dialogue(index, ALL_FAMILIES, **options) for index in range(count)]


def parts(messages: list[dict], kind: str) -> list:
    """Texts ("text") or pictures ("image") of a chat, in order."""
    return [part[kind] for message in messages for part in message["content"] if part["type"] == kind]


def digest(pieces: Iterable[bytes]) -> str:
    total = blake2b(digest_size=8)
    for piece in pieces:
        total.update(len(piece).to_bytes(8, "big") + piece)
    return total.hexdigest()


def check(what: str, found: str, expected: str) -> None:
    """Compare digests, and say what to do about a difference."""
    assert found == expected, (
        f"{what} of suite version {SUITE_VERSION} changed: results before and after cannot be compared. "
        f"Undo the change, or raise SUITE_VERSION in splits.py and VERSION here, and put {found} here. "
        f"Where only pictures changed, see first whether another version of Pillow draws them differently."
    )


# What must never change


def test_the_digests_are_of_this_version() -> None:
    assert SUITE_VERSION == VERSION
    assert tuple(DIGESTS) == KINDS


@pytest.mark.parametrize("kind", KINDS)
def test_texts_never_change(kind: str) -> None:
    asked = [item for split in SPLITS if kind in KINDS_OF_SPLIT[split] for item in examples(split, kind)]
    texts = (part for item in asked for part in (item.id, *parts(item.messages, "text"), item.answer, item.mark or ""))
    check(f"the {kind} texts", digest(map(str.encode, texts)), DIGESTS[kind][0])


@same_drawing
@pytest.mark.parametrize("kind", KINDS)
def test_pictures_never_change(kind: str) -> None:
    shown = [split for split in SPLITS if kind in KINDS_OF_SPLIT[split] and split != "unseen_fonts"]
    pictures = (
        picture for split in shown for item in examples(split, kind) for picture in parts(item.messages, "image")
    )
    check(f"the {kind} pictures", digest(map(Image.Image.tobytes, pictures)), DIGESTS[kind][1])


def test_pictures_in_the_typeface_never_change() -> None:
    pictures = (picture for item in examples("unseen_fonts", "ocr") for picture in parts(item.messages, "image"))
    check("the pictures of unseen_fonts", digest(map(Image.Image.tobytes, pictures)), TYPEFACE_PICTURES)


def test_a_text_about_a_picture_is_of_its_kind() -> None:
    scene, rng = make_scene("validation", 1), random.Random(0)
    assert training_text("facts", scene, random.Random(0)) == ("Describe the shapes.", facts(scene, random.Random(0)))
    told = relations(scene, random.Random(0))
    assert training_text("relations", scene, random.Random(0)) == ("Which shape is left of which?", told)
    assert training_text("whole", scene, rng)[0] in ("Describe the picture.", "Read the grid.")


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("facts", 'kind=\'facts\' of a Chart; pass "whole", or "facts" or "relations" of a Scene'),
        ("lookups", "kind='lookups' of a"),
    ],
)
def test_texts_that_do_not_exist_are_refused(kind: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        training_text(kind, make_chart("train", 0), random.Random(0))


def test_training_texts_never_change() -> None:
    texts = (text for item in dialogues(100, reasoned=0.3) for turn in item.turns for text in turn)
    check("the training texts", digest(map(str.encode, texts)), TRAINING_TEXTS)


@same_drawing
def test_training_pictures_never_change() -> None:
    pictures = (picture.tobytes() for item in dialogues(100, reasoned=0.3) for picture in item.pictures)
    check("the training pictures", digest(pictures), TRAINING_PICTURES)


# Evaluation sets


def test_the_kinds_of_the_splits() -> None:
    assert set(KINDS_OF_SPLIT) == set(SPLITS)
    assert {kind for kinds in KINDS_OF_SPLIT.values() for kind in kinds} == set(KINDS)
    for split in ("validation", "test", "demo", "train"):
        assert KINDS_OF_SPLIT[split] == KINDS
    assert KINDS_OF_SPLIT["unseen_fonts"] == ("ocr",)
    assert set(KINDS) - set(KINDS_OF_SPLIT["more_objects"]) == {"ocr", "chart", "change"}


@pytest.mark.parametrize("split", SPLITS)
def test_kinds_come_in_turn_and_shorter_sets_are_prefixes(split: str) -> None:
    kinds = KINDS_OF_SPLIT[split]
    asked = evaluation_set(split, 3 * len(kinds))
    assert [item.kind for item in asked] == list(kinds) * 3
    assert evaluation_set(split, len(kinds) + 1) == asked[: len(kinds) + 1]
    # Asking some kinds gives the same examples of them as asking all.
    for kind in kinds:
        assert examples(split, kind)[:3] == [item for item in asked if item.kind == kind]


@pytest.mark.parametrize("split", SPLITS)
def test_ids_are_unique_and_no_two_examples_share_a_picture(split: str) -> None:
    asked = [item for kind in KINDS_OF_SPLIT[split] for item in examples(split, kind)]
    assert len({item.id for item in asked}) == len(asked)
    indices = [int(item.id.rsplit("/", 1)[1]) for item in asked]
    assert len(set(indices)) == len(indices)
    assert all(item.id == f"{split}/{item.kind}/{index}" for item, index in zip(asked, indices, strict=True))
    assert example(split, asked[5].kind, indices[5]) == asked[5]


@pytest.mark.parametrize("split", SPLITS)
def test_every_expected_answer_is_the_one_right_answer(split: str) -> None:
    for kind in KINDS_OF_SPLIT[split]:
        family = "scene" if kind == "reasoned" else next(f for f, found in FAMILIES.items() if kind in found.askers)
        for item in examples(split, kind):
            world = FAMILIES[family].make(split, int(item.id.rsplit("/", 1)[1]))
            *earlier, question = parts(item.messages, "text")
            assert question.endswith(THINK) == (kind == "reasoned")
            assert item.answer == oracle(world, question.removesuffix(THINK), earlier[0] if earlier else None)
            assert item.mark == (ANSWER_MARK if kind == "reasoned" else None)
            assert len(earlier) == (2 if kind == "dialogue" else 0)
            pictures = parts(item.messages, "image")
            assert [picture.size for picture in pictures] == [(PICTURE_SIDE, PICTURE_SIDE)] * (1 + (kind == "change"))
            assert item.messages[-1]["role"] == "user"


@pytest.mark.parametrize(
    ("kind", "bound"),
    # A text of 25 held-out words is one in 60; values of charts are from 1 to 9, small ones more often as differences.
    [("ocr", 0.08), ("chart", 0.25), ("change", 0.05)],
)
def test_no_answer_is_right_too_often(kind: str, bound: float) -> None:
    answers = Counter(item.answer for item in examples("test", kind))
    assert max(answers.values()) <= bound * COUNT, answers.most_common(3)


def test_an_example_of_an_unknown_kind_or_split_is_refused() -> None:
    with pytest.raises(ValueError, match="kind='size' is not a kind of question; pass one of colour, shape, position"):
        example("test", "size", 0)
    with pytest.raises(ValueError, match="split='dev' is not a split of the suite"):
        evaluation_set("dev", 1)


def test_a_set_that_cannot_be_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(
        ValueError, match=r"kinds=\['chart'\] are not asked in the split 'unseen_fonts'; pass some of ocr"
    ):
        evaluation_set("unseen_fonts", 1, ["chart"])
    for kinds in ([], ["ocr", "ocr"]):
        with pytest.raises(ValueError, match="must name each kind once, and one at least; leave kinds out to ask all"):
            evaluation_set("test", 1, kinds)
    monkeypatch.setitem(suite.SPLIT_SEEDS, "demo", range(300_000, 300_026))
    assert len(evaluation_set("demo", 4, ["caption", "ocr"])) == 4
    with pytest.raises(ValueError, match="count=5 is more than the split 'demo' has of these kinds; pass count=4"):
        evaluation_set("demo", 5, ["caption", "ocr"])


def test_a_question_that_a_picture_does_not_allow_is_passed_over() -> None:
    found = [example("test", "relation", index) for index in range(60)]
    asked = [item for item in found if item is not None]
    assert 0 < len(asked) < 60
    indices = [int(item.id.rsplit("/", 1)[1]) for item in examples("test", "relation")]
    allowed = [index for index in range(3, indices[-1] + 1, 13) if example("test", "relation", index) is not None]
    assert indices == allowed


def test_a_chat_shows_its_pictures_first_and_leaves_out_a_missing_answer() -> None:
    picture = Image.new("RGB", (2, 2))
    assert chat([picture, picture], [("a?", "b"), ("c?", None)]) == [
        {
            "role": "user",
            "content": [
                {"type": "image", "image": picture},
                {"type": "image", "image": picture},
                {"type": "text", "text": "a?"},
            ],
        },
        {"role": "assistant", "content": [{"type": "text", "text": "b"}]},
        {"role": "user", "content": [{"type": "text", "text": "c?"}]},
    ]


# Charts and signs


def test_chart_questions_are_a_third_each_and_reasoned_from_the_bars() -> None:
    starts = Counter()
    for index in range(600):
        chart = make_chart("train", index)
        question = FAMILIES["chart"].askers["chart"](chart, random.Random(index))
        if question is None:
            starts["none"] += 1
            continue
        assert question.answer == oracle(chart, question.text)
        start = (
            "value of" if "value of" in question.text else "higher than" if " than " in question.text else "extreme"
        )
        starts["difference" if start == "higher than" else start] += 1
        if start == "value of":
            assert question.reasoning is None
            continue
        bars = [bar.split() for bar in question.reasoning.split(", ")]
        values = {colour: int(value) for colour, value in bars}
        assert values.items() <= dict(zip(chart.colours, chart.values, strict=True)).items()
        told = Chart(chart.background, tuple(values), tuple(values.values()), chart.floor, chart.fill)
        # What is listed is enough to answer.
        assert oracle(told, question.text) == question.answer
    # Four standard deviations of 600 draws with p = 1/3 are 46; equal bars leave some questions out.
    assert abs(starts["value of"] - 200) < 46
    assert starts["difference"] + starts["extreme"] + starts["none"] == 600 - starts["value of"]
    assert min(starts["difference"], starts["extreme"]) > 100


# Training


def test_training_answers_are_right_and_follow_on_the_turn_before() -> None:
    seen = Counter()
    for item in dialogues(600):
        earlier = None
        for question, answer in item.turns:
            assert answer == oracle(item.world, question, earlier)
            assert not any(f"{colour} {shape}" in question + answer for colour, shape in HELD_OUT_PAIRS)
            seen[question.split()[0]] += 1
            earlier = question
        assert len({question for question, _ in item.turns}) == len(item.turns)
        assert 1 <= len(item.turns) <= 10
        assert item.messages == chat(item.pictures, item.turns)
    assert set(seen) == {"What", "Which", "Where", "Is", "Are", "How", "And", "Describe", "Read", "In"}


def test_reasoned_samples_carry_a_tag_in_every_turn_and_their_reasoning_ends_in_the_answer() -> None:
    thought, able = 0, 0
    for item in dialogues(300, reasoned=1.0):
        earlier = None
        for question, answer in item.turns:
            text = question.removesuffix(THINK).removesuffix(NO_THINK)
            assert question in (text + THINK, text + NO_THINK)
            assert (ANSWER_MARK in answer) == question.endswith(THINK)
            reasoning, _, final = answer.rpartition(ANSWER_MARK)
            assert final == oracle(item.world, text, earlier)
            thought += bool(reasoning)
            able += bool(re.match("How many|Are there more|Which bar|What is the (high|low)est|How much", text))
            earlier = text
    # 0.6 of the questions that have something to list show it; four standard deviations.
    assert abs(thought - 0.6 * able) < 4 * (0.24 * able) ** 0.5


def test_shares_of_samples() -> None:
    tagged = sum(item.turns[0][0].endswith((THINK, NO_THINK)) for item in dialogues(500, reasoned=0.4))
    assert abs(tagged - 200) < 44  # four standard deviations
    worlds = Counter(type(item.world) for item in dialogues(500))
    for world, share in ((Scene, 0.4), (Sign, 0.2), (Chart, 0.2), (SceneChange, 0.2)):
        assert abs(worlds[world] - 500 * share) < 4 * (500 * share * (1 - share)) ** 0.5
    whole = [training_dialogue(index, {"scene": 1.0}, long=1.0).turns for index in range(50)]
    assert {len(turns) for turns in whole} == {1}
    assert {turns[0][0] for turns in whole} == {"Describe the picture.", "Read the grid."}


def test_another_seed_asks_other_questions_about_the_same_pictures() -> None:
    first, second = (training_dialogue(7, {"scene": 1.0}, seed=seed) for seed in (0, 1))
    assert first.pictures == second.pictures
    assert first.turns != second.turns
    assert first == training_dialogue(7, {"scene": 1.0})


@pytest.mark.parametrize("family", FAMILIES)
def test_a_sample_without_questions_says_all_that_its_pictures_show(family: str) -> None:
    for reasoned, tag in ((0.0, ""), (1.0, NO_THINK)):
        item = training_dialogue(3, {family: 1.0}, turns=0, reasoned=reasoned, long=0.0)
        (asked, _), *_ = item.turns
        long = (long_answer(item.world, random.Random(number)) for number in range(20))
        question = next(question for question in long if question.text + tag == asked)
        assert item.turns == [(question.text + tag, question.answer)]
        assert question.answer == oracle(item.world, question.text)


def test_texts_for_a_tokenizer_leave_out_what_signs_say() -> None:
    texts = all_texts(samples=200)
    assert texts == all_texts(samples=200)
    words = {word for text in texts for word in re.findall(r"\w+", text)}
    assert words >= {*COLOURS, *SHAPES, "think", "no_think", "Answer", "sign", "bar"}
    assert not {word for word in words if word.isupper() and len(word) > 1}
