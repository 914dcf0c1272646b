"""Answers summed up: rows worked out by hand that survive a file, tables, and sheets with wrong answers first."""

import numpy as np
import pytest
from PIL import Image

from transformers_lladav.eval_asking import Answer
from transformers_lladav.eval_metrics import mean_interval, wilson_interval
from transformers_lladav.eval_results import as_tasks, markdown_table, rows_of, save_sheet, shown_columns, sum_up
from transformers_lladav.eval_tasks import Question, Task


def answer(number, kind, score, *, task=0, blind=False, metric="exact_match", rate=1.0, forwards=2):
    given = "right" if score == 1 else "wrong"
    return Answer(task, number, blind, f"q/{number}", kind, metric, "Which?", "right", given, score, rate, forwards)


ANSWERS = [
    answer(1, "b", 0.6, metric="anls", rate=3.0),
    answer(0, "a", 1.0, rate=1.0),
    answer(2, "a", 0.0, rate=2.0, forwards=5),
    answer(0, "a", 1.0, blind=True, rate=9.0, forwards=99),
    answer(2, "a", 0.0, blind=True),
    answer(3, "a", 1.0, metric="choice", rate=None),
    answer(0, "c", 1.0, task=1),
]


def test_answers_are_summed_up_by_task_kind_and_metric():
    rows = sum_up(["first", "second"], ANSWERS)
    assert [(row.task, row.kind, row.metric) for row in rows] == [
        ("first", "a", "exact_match"), ("first", "b", "anls"), ("first", "a", "choice"), ("first", "all", "mixed"),
        ("second", "c", "exact_match"),
    ]  # fmt: skip
    a, b, choice, everything, second = rows
    assert (a.questions, a.score, a.blind_questions, a.blind_score) == (2, 0.5, 2, 0.5)
    assert (a.tokens_per_forward, a.forwards, a.interval) == (1.5, 7, wilson_interval(1, 2))
    assert (b.score, b.interval, b.blind_questions, b.blind_score) == (0.6, (0.0, 1.0), 0, None)
    assert (choice.tokens_per_forward, choice.score) == (None, 1.0)
    assert (everything.questions, everything.score) == (4, pytest.approx(2.6 / 4))
    assert everything.interval == mean_interval([1.0, 0.6, 0.0, 1.0])
    assert (everything.blind_score, everything.tokens_per_forward, everything.forwards) == (0.5, 2.0, 11)
    assert (second.questions, second.score, second.interval) == (1, 1.0, wilson_interval(1, 1))


def test_rows_survive_a_file():
    rows = sum_up(["first", "second"], ANSWERS)
    tasks = as_tasks(rows)
    assert [(task["task"], len(task["kinds"])) for task in tasks] == [("first", 4), ("second", 1)]
    assert tasks[0]["kinds"][0]["interval"] == list(rows[0].interval)
    assert rows_of({"tasks": tasks}) == rows


def test_the_table_has_the_columns_that_say_anything():
    rows = sum_up(["my|task"], [answer(0, "a", 1.0, rate=None), answer(1, "a", 0.0, rate=None)])
    assert shown_columns(rows) == ["task", "kind", "metric", "questions", "score", "95 % interval"]
    table = markdown_table({"tasks": as_tasks(rows), "command": "lladav eval -t x"})
    low, high = wilson_interval(1, 2)
    assert table.splitlines() == [
        "| task | kind | metric | questions | score | 95 % interval |",
        "| :-- | :-- | :-- | --: | --: | --: |",
        rf"| my\|task | a | exact_match | 2 | 50.0% | {low:.1%} .. {high:.1%} |",
        "",
        "`lladav eval -t x`",
    ]
    assert shown_columns(sum_up(["t"], ANSWERS[:5]))[-2:] == ["wrong picture", "tokens per forward"]


def question(number, *pictures):
    content = [{"type": "image", "image": picture} for picture in pictures]
    message = {"role": "user", "content": [*content, {"type": "text", "text": "Which?"}]}
    return Question(f"q/{number}", "a", [message], ("right",), "exact_match", (), f"q:{number}")


def test_a_sheet_shows_wrong_answers_first_and_then_right_ones(tmp_path):
    colours = [(200, 0, 0), (0, 200, 0), (0, 0, 200), (200, 200, 0)]
    pictures = [Image.new("RGB", (30, 30), colour) for colour in colours]
    tasks = [Task("mine", [question(number, picture) for number, picture in enumerate(pictures)])]
    answers = [answer(0, "a", 1.0), answer(1, "a", 0.5), answer(2, "a", 1.0, blind=True), answer(3, "a", 1.0)]
    save_sheet(tmp_path / "new" / "sheet.png", tasks, answers, 3)
    sheet = np.asarray(Image.open(tmp_path / "new" / "sheet.png"))
    places = []
    for colour in colours:
        found = np.argwhere((np.abs(sheet.astype(int) - colour) < 3).all(axis=-1))
        places.append(tuple(found.mean(axis=0)[::-1]) if len(found) > 10_000 else None)
    assert places[2] is None  # it was only asked blind
    assert places[1][0] < places[0][0] < places[3][0]  # from left to right: wrong, right, right
    save_sheet(tmp_path / "sheet.png", tasks, answers, 1)
    assert Image.open(tmp_path / "sheet.png").width < sheet.shape[1]


@pytest.fixture
def sheet_rows(monkeypatch):
    """What a contact sheet is made of."""
    shown = []

    def draw(rows):
        shown.extend(rows)
        return Image.new("RGB", (4, 4))

    monkeypatch.setattr("transformers_lladav.eval_results.contact_sheet", draw)
    return shown


def test_a_sheet_shows_all_pictures_first_frames_and_turns_and_questions_without_any(tmp_path, sheet_rows):
    colours = ("red", "green", "blue")
    red, green, blue = (Image.new("RGB", (8, 8), colour) for colour in colours)
    said = {"role": "assistant", "content": [{"type": "text", "text": "That one."}]}
    first, bare = question(0, red), question(1)
    first.messages[0]["content"].insert(0, {"type": "video", "video": [blue, red]})
    first.messages[1:] = [said, question(0, green).messages[0]]
    save_sheet(tmp_path / "sheet.png", [Task("mine", [first, bare])], [answer(0, "a", 0.0), answer(1, "a", 0.0)], 2)
    assert sheet_rows[0].question == ["Which?", "That one.", "Which?"]
    assert [picture.getpixel((0, 0)) for picture in sheet_rows[0].image] == [
        (255, 0, 0), (0, 128, 0), (0, 0, 255)
    ]  # fmt: skip
    assert (sheet_rows[1].image, sheet_rows[1].question) == ([], ["Which?"])


def test_a_right_answer_in_other_words_is_shown_as_right(tmp_path, sheet_rows):
    red = Image.new("RGB", (4, 4))
    tasks = [Task("mine", [question(0, red), question(1, red)])]
    other = Answer(0, 0, False, "q/0", "a", "relaxed_accuracy", "Which?", "100", "101", 1.0, 1.0, 1)
    save_sheet(tmp_path / "sheet.png", tasks, [other, answer(1, "a", 0.0)], 2)
    found = [(row.given, row.expected, row.is_right) for row in sheet_rows]
    assert found == [("wrong", "right", False), ("101", "100", True)]
