"""Held-out questions: which ones are asked, what comes back, and what counts as right."""

import random

import pytest
from transformers import AutoProcessor

from training_runs import write_data
from transformers_lladav import BUNDLED_CHECKPOINT, LladaVForMaskedDiffusion
from transformers_lladav.data import Examples
from transformers_lladav.held_out import (
    LONGEST_ANSWER,
    HeldOutQuestion,
    HeldOutReply,
    answer_questions,
    choose_questions,
)
from transformers_lladav.scene_questions import ASKERS
from transformers_lladav.shape_scenes import make_scene, render_scene


@pytest.fixture(scope="module")
def processor():
    return AutoProcessor.from_pretrained(BUNDLED_CHECKPOINT)


@pytest.fixture(scope="module")
def model():
    return LladaVForMaskedDiffusion.from_pretrained(BUNDLED_CHECKPOINT).eval()


@pytest.fixture(scope="module")
def examples(tmp_path_factory):
    return Examples(write_data(tmp_path_factory.mktemp("data"), 8, "test"))


def turn(role, text):
    return {"role": role, "content": text}


def test_the_last_answer_is_asked_for(processor):
    talk = [turn("user", "One?"), turn("assistant", "two"), turn("user", "Two?"), turn("assistant", "three")]
    parts = [turn("user", "One?"), {"role": "assistant", "content": [{"type": "text", "text": "a star"}]}]
    examples = [
        type("Example", (), {"messages": messages, "source": f"line {number}"})
        for number, messages in enumerate([talk, parts])
    ]
    first, second = choose_questions(examples, processor.tokenizer, 5)
    assert first == HeldOutQuestion(talk[:3], "three", "line 0")
    assert second == HeldOutQuestion(parts[:1], "a star", "line 1")


def test_what_cannot_be_right_or_wrong_is_passed_over(processor):
    def example(*messages):
        return type("Example", (), {"messages": list(messages), "source": "x"})

    user = turn("user", "Why?")
    (token,) = processor.tokenizer("red", add_special_tokens=False).input_ids[:1]
    fits = processor.tokenizer.decode([token] * LONGEST_ANSWER)
    long = fits + " red" * 3
    assert len(processor.tokenizer(long, add_special_tokens=False).input_ids) > LONGEST_ANSWER
    given = [
        example(user),
        example(turn("assistant", "a star")),
        example(user, turn("assistant", long)),
        example(user, turn("assistant", "one")),
        example(user, turn("assistant", "two")),
        example(user, turn("assistant", "three")),
    ]
    assert [question.answer for question in choose_questions(given, processor.tokenizer, 2)] == ["one", "two"]
    assert choose_questions(given, processor.tokenizer, 0) == []


@pytest.mark.parametrize(
    ("text", "right"), [("a cat", True), (" a cat\n", True), ("A cat", False), ("a cat.", False), ("", False)]
)
def test_right_is_right_to_the_letter(text, right):
    assert HeldOutReply(HeldOutQuestion([], "a cat ", "x"), text).right is right


def test_answers_are_those_of_generate_one_by_one(model, processor, examples):
    """Each alone with a canvas of the same length, in the order of the questions."""
    questions = choose_questions(examples, processor.tokenizer, 8)
    replies = answer_questions(model, processor, questions, batch_size=3, max_new_tokens=32, block_length=32)
    assert [reply.question for reply in replies] == questions
    for reply in replies:
        inputs = processor.apply_chat_template(
            reply.question.prompt,
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            processor_kwargs={"return_tensors": "pt"},
        )
        output = model.generate(**inputs, return_dict_in_generate=True, max_new_tokens=32, block_length=32)
        assert reply.text == processor.tokenizer.decode(output.answers[0], skip_special_tokens=True).strip()


def test_the_bundled_checkpoint_names_colours_it_is_asked_about(model, processor):
    questions = []
    for index in range(8):
        scene = make_scene("test", index)
        asked = ASKERS["colour"](scene, random.Random(index))
        content = [{"type": "image", "image": render_scene(scene, 96)}, {"type": "text", "text": asked.text}]
        questions.append(HeldOutQuestion([{"role": "user", "content": content}], asked.answer, "x"))
    assert all(reply.right for reply in answer_questions(model, processor, questions))
    swapped = [HeldOutQuestion(question.prompt, "grey", "x") for question in questions]
    assert not any(reply.right for reply in answer_questions(model, processor, swapped))
