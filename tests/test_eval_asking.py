"""Questions put to a model: each once, in any batch as alone, about its own pictures and blind about others."""

import json
from types import SimpleNamespace

import pytest
import torch

from eval_samples import COLOURS, Knower, write_colours, write_records
from transformers_lladav import asking
from transformers_lladav.eval_asking import (
    Asking,
    Item,
    ask_batches,
    choose,
    list_items,
    make_batches,
    resolve_generation,
    write,
)
from transformers_lladav.eval_metrics import Ignored
from transformers_lladav.eval_survey import survey
from transformers_lladav.eval_tasks import open_tasks


def prepare(path, processor, blind=False, batch_size=3, metric=None):
    tasks = open_tasks([str(path)], metric=metric)
    surveys = [survey(task) for task in tasks]
    return tasks, make_batches(list_items(surveys, blind), tasks, surveys, processor, batch_size)


def test_every_question_is_asked_once_and_rated(bundled, tmp_path):
    tasks, batches = prepare(write_colours(tmp_path), bundled.processor)
    knower = Knower(bundled, tasks)
    answers = [
        answer for given in ask_batches(knower, bundled.processor, tasks, batches, Asking()) for answer in given
    ]
    assert sorted(answer.key for answer in answers) == [(0, number, False) for number in range(8)]
    assert all(answer.score == 1 and answer.given == answer.expected for answer in answers)
    assert {answer.number: answer.given for answer in answers if answer.kind == "colour"} == dict(
        zip(range(0, 8, 2), COLOURS, strict=True)
    )
    first = min(answers, key=lambda answer: answer.key)
    assert (first.id, first.question, first.metric) == ("colours.jsonl:1", "Which colour is it?", "exact_match")
    assert (first.tokens_per_forward, first.forwards) == (1.5, 4)
    assert knower.batches == [3, 3, 2]


def test_blind_questions_are_about_the_pictures_of_the_next_of_the_kind(bundled, tmp_path):
    tasks, batches = prepare(write_colours(tmp_path), bundled.processor, blind=True, batch_size=5)
    knower = Knower(bundled, tasks)
    answers = [
        answer for given in ask_batches(knower, bundled.processor, tasks, batches, Asking()) for answer in given
    ]
    assert len(answers) == 16
    blind = {answer.number: answer for answer in answers if answer.blind}
    assert [blind[number].given for number in range(0, 8, 2)] == ["green", "blue", "yellow", "red"]
    assert [blind[number].expected for number in range(0, 8, 2)] == list(COLOURS)
    assert [blind[number].score for number in range(8)] == [0, 1] * 4


def test_batches_hold_prompts_of_similar_length_the_longest_first_and_choices_apart(bundled, tmp_path):
    words = ["one", "two", "three", "four", "five", "six", "seven", "eight"]
    records = [{"question": " ".join(words[: 1 + number % 4]), "answer": "x"} for number in range(8)]
    records.append({"question": "Which?", "answer": "x", "choices": ["x", "y"]})
    _, batches = prepare(write_records(tmp_path / "q.jsonl", records), bundled.processor, batch_size=4)
    assert batches == [
        [Item(0, number) for number in (3, 7, 2, 6)], [Item(0, number) for number in (1, 5, 0, 4)], [Item(0, 8)]
    ]  # fmt: skip


def test_settings_preset_and_tag_reach_the_model_and_each_question_has_its_own_seed(bundled, tmp_path):
    path = write_records(tmp_path / "q.jsonl", [{"question": f"Word {number}?", "answer": "x"} for number in range(4)])
    how = Asking({"temperature": 0.5}, preset="mmmu", seed=3)

    def seeds(batch_size, how):
        tasks, batches = prepare(path, bundled.processor, batch_size=batch_size)
        knower = Knower(bundled, tasks)
        given = [
            answer for answers in ask_batches(knower, bundled.processor, tasks, batches, how) for answer in answers
        ]
        order = [answer.number for answer in given]
        assert all(answer.given == "no idea" for answer in given)  # "/no_think" makes it another question
        called = [{**call, "seeds": None} for call in knower.settings]
        assert called == [{"preset": "mmmu", "temperature": 0.5, "seeds": None}] * len(called)
        return dict(zip(order, [seed for call in knower.settings for seed in call["seeds"]], strict=True))

    alone = seeds(1, how)
    assert seeds(4, how) == alone
    assert len(set(alone.values())) == 4
    assert not set(seeds(4, Asking({"temperature": 0.5}, preset="mmmu", seed=4)).values()) & set(alone.values())


def test_an_answer_in_a_batch_is_that_which_the_model_gives_alone(bundled, tmp_path):
    tasks, _ = prepare(write_colours(tmp_path), bundled.processor)
    questions = list(tasks[0].questions)
    replies = write(
        bundled.model, bundled.processor, [item.messages for item in questions], Asking(), range(len(questions))
    )
    for question, reply in zip(questions, replies, strict=True):
        alone = asking.answer(bundled, question.messages)
        assert (reply.text, reply.forwards) == (alone.text, alone.denoising_steps)
        assert reply.tokens_per_forward == pytest.approx(alone.tokens_per_forward, abs=1e-3)


def test_guidance_takes_two_passes_a_step(bundled):
    chat = [{"role": "user", "content": [{"type": "text", "text": "Which colour?"}]}]
    settings = {"max_new_tokens": 8, "block_length": 8, "max_denoising_steps": 1}
    (once,) = write(bundled.model, bundled.processor, [chat], Asking(settings), [0])
    (guided,) = write(bundled.model, bundled.processor, [chat], Asking({**settings, "cfg_scale": 1.0}), [0])
    assert (once.forwards, guided.forwards) == (1, 2)


def test_a_choice_is_the_one_of_the_highest_likelihood_per_token(bundled, tmp_path):
    write_colours(tmp_path)
    choices = ["red", "a red circle at the top left", "two"]
    message = asking.user_message([tmp_path / "red.png"], "Which colour?")
    rated = asking.score(bundled, tmp_path / "red.png", "Which colour?", choices, num_samples=8, seed=2)
    content = [
        part if part["type"] == "text" else {**part, "image": str(part["image"])} for part in message["content"]
    ]
    reply = choose(
        bundled.model, bundled.processor, [{**message, "content": content}], choices, Asking(samples=8, seed=2)
    )
    assert reply.text == max(rated, key=lambda item: item.per_token).text
    assert reply.tokens_per_forward is None
    # Two answers of one token and their end have 3 masks each; the long one is estimated from 8.
    lengths = [len(bundled.tokenizer(choice).input_ids) + 1 for choice in choices]
    assert reply.forwards == sum(min(2**length - 1, 8) for length in lengths)


def test_choices_are_rated_by_what_was_chosen(bundled, tmp_path, monkeypatch):
    path = write_colours(tmp_path, choices=["red", "yes", "no"], answers=["red", "yes"], metric="choice")
    records = [json.loads(line) for line in path.read_text().splitlines()][:2]
    tasks, batches = prepare(write_records(path, records), bundled.processor)
    monkeypatch.setattr("transformers_lladav.eval_asking.choose", lambda *args: SimpleNamespace(
        text="no", tokens_per_forward=None, forwards=9))  # fmt: skip
    (answers,) = ask_batches(bundled.model, bundled.processor, tasks, batches, Asking())
    assert [(answer.given, answer.score, answer.forwards) for answer in answers] == [("no", 0.0, 9)] * 2


def test_what_exact_match_ignores_is_passed_on(bundled, tmp_path):
    path = write_records(tmp_path / "q.jsonl", [{"question": "Which?", "answers": ["x"]}])
    tasks, batches = prepare(path, bundled.processor)
    knower = Knower(bundled, tasks)
    knower.answer_to = lambda key: "X."
    for ignored, score in ((Ignored(), 0), (Ignored(case=True, dot=True), 1)):
        ((answer,),) = ask_batches(knower, bundled.processor, tasks, batches, Asking(ignored=ignored))
        assert answer.score == score


def test_settings_are_the_checkpoints_changed_by_the_preset_changed_by_those_given(bundled):
    own = bundled.model.generation_config
    assert resolve_generation(bundled.model, Asking())["max_new_tokens"] == own.max_new_tokens
    found = resolve_generation(bundled.model, Asking({"steps": 8}, preset="docvqa"))
    assert (found["max_new_tokens"], found["block_length"], found["max_denoising_steps"]) == (32, 32, 8)
    assert "return_dict_in_generate" not in found
    assert own.max_denoising_steps is None or own.max_denoising_steps != 8
    with pytest.raises(TypeError, match="does not take 'temprature'; did you mean 'temperature'"):
        resolve_generation(bundled.model, Asking({"temprature": 1}))
    with pytest.raises(
        ValueError, match="max_new_tokens=9 is not a multiple of block_length=8; pass max_new_tokens=16"
    ):
        resolve_generation(bundled.model, Asking({"max_new_tokens": 9, "block_length": 8}))


def test_length_does_not_count_in_a_choice_and_settings_reach_the_score(bundled):
    """A sure answer of many tokens against an unsure one of few: -4 nats over 8 tokens, -2 over 2."""
    called = {}

    def score(input_ids, answers, tokenizer, num_samples, batch_size, seed, **inputs):
        called.update(answers=answers, num_samples=num_samples, batch_size=batch_size, seed=seed)
        return SimpleNamespace(
            log_likelihoods=torch.tensor([-2.0, -4.0]),
            log_likelihoods_per_token=torch.tensor([-1.0, -0.5]),
            num_forwards=torch.tensor([3, 4]),
        )

    model = SimpleNamespace(device=torch.device("cpu"), score=score)
    chat = [{"role": "user", "content": [{"type": "text", "text": "Which?"}]}]
    reply = choose(model, bundled.processor, chat, ("short", "long"), Asking(seed=5, samples=6, batch_size=7))
    assert (reply.text, reply.tokens_per_forward, reply.forwards) == ("long", None, 7)
    assert called == {"answers": ["short", "long"], "num_samples": 6, "batch_size": 7, "seed": 5}
