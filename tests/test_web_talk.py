"""Conversations of the page: answers are those of the model, and whatever goes wrong is told and changes nothing."""

import re
import time
from pathlib import Path

import pytest
from PIL import Image

from test_adapters import load_base, save, train
from test_web_view import words
from transformers_lladav import asking
from transformers_lladav.shape_scenes import make_scene, render_scene
from transformers_lladav.web_talk import NO_ADAPTER, Choice, Queues, Site, Talk

QUESTION = "Describe the picture."


@pytest.fixture(scope="module")
def assistant():
    return asking.load(device="cpu")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    for number in range(2):
        render_scene(make_scene("demo", number), 96).save(folder / f"{number}.png")
    return [str(folder / f"{number}.png") for number in range(2)]


@pytest.fixture
def make_talk(assistant):
    made = []

    def make(**options):
        site = Site(**{"models": {"bundled": lambda: assistant}, **options})
        made.append(Queues(site))
        return Talk(site, made[-1])

    yield make
    for queues in made:
        queues.close()


def last(pages):
    *_, page = pages
    return page


def ask(talk, turns, picture, question=QUESTION, template="", **choice):
    return last(talk.ask(turns, picture, question, template, Choice(**{"model": "bundled", **choice})))


def test_an_answer_comes_step_by_step_and_says_what_it_took(assistant, make_talk, files):
    expected = asking.ask(assistant, files[0], QUESTION)
    pages = list(make_talk().ask([], files[0], QUESTION, "", Choice("bundled", pace=0.001)))
    drafts = [page for page in pages if "Denoising" in page[1]]
    assert len(drafts) == expected.denoising_steps
    assert "lv-masked" in drafts[0][0].partition("lv-legend")[0]
    shown, told, turns = pages[-1]
    assert [turn.answer for turn in turns] == [expected.text]
    assert expected.text in words(shown)
    assert words(told).startswith(
        f"{expected.tokens} tokens · {expected.denoising_steps} forward passes · "
        f"{expected.tokens_per_forward:.2f} tokens per forward · "
    )
    assert "lv-masked" not in shown.partition("lv-legend")[0]
    assert all(0 < piece.confidence <= 1 for piece in turns[0].pieces)


def test_a_conversation_goes_on_and_a_picture_is_shown_once(assistant, make_talk, files):
    talk = make_talk()
    _, _, turns = ask(talk, [], files[0])
    _, _, turns = ask(talk, turns, files[0], "How many shapes are there?")
    _, _, turns = ask(talk, turns, files[1], "How many shapes are there?")
    assert [turn.pictures for turn in turns] == [(files[0],), (), (files[1],)]
    chat = [asking.user_message([files[0]], QUESTION)]
    for question, pictures in (("How many shapes are there?", []), ("How many shapes are there?", [files[1]])):
        reply = asking.answer(assistant, chat)
        chat += [{"role": "assistant", "content": [{"type": "text", "text": reply.text}]}]
        chat += [asking.user_message(pictures, question)]
    assert turns[-1].answer == asking.answer(assistant, chat).text


def test_settings_reach_the_loop(assistant, make_talk, files):
    talk = make_talk()
    _, told, _ = ask(talk, [], files[0], length=16, block=16, steps=4)
    assert ("4 forward passes" in told, "the canvas is full" in told) == (True, True)
    expected = asking.ask(assistant, files[0], QUESTION, preset="fast")
    _, told, _ = ask(talk, [], files[0], preset="fast")
    assert f"{expected.denoising_steps} forward passes" in told
    sure = asking.ask(assistant, files[0], QUESTION, threshold=0.5)
    _, told, _ = ask(talk, [], files[0], threshold=0.5)
    assert f"{sure.denoising_steps} forward passes" in told


def test_holes_are_filled_and_not_kept(assistant, make_talk, files):
    template = "an [MASK:1] triangle at the [MASK:1] left"
    shown, _, turns = ask(make_talk(), [], files[0], template=template)
    assert asking.fill(assistant, files[0], QUESTION, template).text in words(shown)
    assert len(re.findall("lv-rated", shown)) == 2
    assert turns == []


def test_no_picture_is_fine(assistant, make_talk):
    assert (
        ask(make_talk(), [], None)[2][0].answer == asking.answer(assistant, [asking.user_message([], QUESTION)]).text
    )


def test_models_load_when_they_are_chosen_and_adapters_answer(assistant, make_talk, files, tmp_path):
    loaded = []
    adapter = str(save(train(load_base(), seed=3, size=0.2), tmp_path / "mine"))
    own = asking.load(device="cpu")
    models = {"bundled": lambda: assistant, "second": lambda: loaded.append(1) or own}
    talk = make_talk(models=models, adapters={"mine": adapter})
    plain = ask(talk, [], files[0])[2][0].answer
    assert loaded == []
    pages = list(talk.ask([], files[0], QUESTION, "", Choice("second", adapter="mine")))
    assert "Loading second ..." in pages[0][1]
    expected = asking.ask(asking.load(adapter=adapter, device="cpu"), files[0], QUESTION).text
    assert pages[-1][2][0].answer == expected != plain
    assert ask(talk, [], files[0], model="second", adapter=NO_ADAPTER)[2][0].answer == plain
    assert loaded == [1]


@pytest.mark.parametrize(
    ("given", "words_of_it"),
    [
        ({"question": "  "}, "the question is empty"),
        ({"question": "x" * 101}, "the question has 101 characters, and 100 are allowed"),
        ({"template": "x" * 101}, "the answer with holes has 101 characters"),
        ({"template": "no holes"}, "hole"),
        ({"length": 500}, "an answer of 500 tokens is longer than the 256 allowed"),
        ({"length": 20}, "max_new_tokens=20 is not a multiple of block_length=8"),
        ({"length": 2.5}, "max_new_tokens=2.5"),
        ({"steps": 100}, "max_denoising_steps=100"),
        ({"threshold": 7}, "7"),
        ({"preset": "<b>"}, "preset='<b>' is not known"),
        ({"model": "other"}, "the model 'other' is not offered; choose one of bundled"),
        ({"adapter": "../../etc"}, "the adapter '../../etc' is not offered"),
    ],
)
def test_what_cannot_be_answered_is_told_and_changes_nothing(make_talk, files, given, words_of_it):
    talk = make_talk(characters=100)
    turns = ask(talk, [], files[0], "How many shapes are there?")[2]
    shown, told, kept = ask(talk, turns, files[0], **given)
    assert words_of_it in words(told)
    assert 'role="alert"' in told
    assert kept == turns
    assert words(turns[0].answer) in words(shown)


def test_files_that_are_no_pictures_or_too_large_are_told(make_talk, tmp_path):
    talk = make_talk(picture_bytes=3000, pixels=10_000)
    (tmp_path / "text.png").write_text("not a picture")
    Image.new("RGB", (200, 100)).save(tmp_path / "wide.png")
    (tmp_path / "heavy.png").write_bytes(b"\x89PNG" * 1000)
    told = [words(ask(talk, [], str(tmp_path / f"{name}.png"))[1]) for name in ("text", "wide", "heavy")]
    assert told[0].startswith("the picture is no picture in one of the formats PNG")
    assert told[1].startswith("the picture has 200 x 100 pixels, and 10,000 are allowed")
    assert told[2] == "the picture has 4,000 bytes, and 3,000 are allowed; shrink it"
    whole = Path(tmp_path / "whole.png")
    render_scene(make_scene("demo", 0), 64).save(whole)
    (tmp_path / "cut.png").write_bytes(whole.read_bytes()[:300])
    assert words(ask(talk, [], str(tmp_path / "cut.png"))[1]).startswith("the picture cannot be decoded")


def test_an_answer_that_takes_too_long_is_given_up(assistant, make_talk, files, monkeypatch):
    generate = assistant.model.generate
    monkeypatch.setattr(assistant.model, "generate", lambda **inputs: time.sleep(0.5) or generate(**inputs))
    talk = make_talk(timeout=0.1)
    _, told, kept = ask(talk, [], files[0])
    assert "no answer within 0.1 s; ask for fewer tokens" in words(told)
    assert kept == []


def test_a_model_that_fails_is_told_without_the_reason_which_is_in_the_log(
    assistant, make_talk, files, monkeypatch, caplog
):
    def broken(**_):
        raise RuntimeError("a secret of this machine")

    monkeypatch.setattr(assistant.model, "generate", broken)
    _, told, kept = ask(make_talk(), [], files[0])
    assert words(told) == "the model failed; the log of the program that serves this page says why"
    assert kept == []
    assert "a secret of this machine" in caplog.text


def test_a_picture_that_was_deleted_meanwhile_is_told_as_such(make_talk, files, tmp_path):
    talk, picture = make_talk(), tmp_path / "uploaded.png"
    picture.write_bytes(Path(files[0]).read_bytes())
    turns = ask(talk, [], str(picture))[2]
    picture.unlink()
    for said in (turns, []):  # in an earlier turn, and with this question
        told = words(ask(talk, said, str(picture))[1])
        assert told == "a picture is not here any more; clear the conversation and show it again"


def test_who_stops_listening_takes_the_request_along(assistant, make_talk, files):
    talk = make_talk()
    pages = talk.ask([], files[0], QUESTION, "", Choice("bundled", pace=0.01))
    for page in pages:
        if "lv-rated" in page[0]:
            break
    pages.close()
    assert ask(talk, [], files[0])[2]
    assert not talk.queues.get("bundled")._waiting
