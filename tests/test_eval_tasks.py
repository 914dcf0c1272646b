"""Tasks: what records and the suite ask and accept, and that bad records are named before anything is asked."""

import json

import pytest
from PIL import Image

from transformers_lladav import eval_tasks, splits, suite
from transformers_lladav.eval_survey import Entry, other_pictures, survey, with_pictures
from transformers_lladav.eval_tasks import ReadOptions, Task, append_text, open_tasks
from transformers_lladav.record_files import DataError, RecordError


@pytest.fixture
def folder(tmp_path):
    for number, name in enumerate(("red", "green", "blue")):
        Image.new("RGB", (20 + number, 10), name).save(tmp_path / f"{name}.png")
    return tmp_path


@pytest.fixture
def opened(folder):
    """Writes records and opens them as one task."""

    def write(*records, name="mine.jsonl", **options):
        path = folder / name
        path.write_text("".join(json.dumps(record) + "\n" for record in records))
        (task,) = open_tasks([str(path)], **options)
        return task

    return write


def texts(question):
    return [part["text"] for message in question.messages for part in message["content"] if part["type"] == "text"]


# A user's records


def test_the_last_assistant_message_is_expected_and_what_is_before_it_the_prompt(opened, folder):
    chat = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "<image>Which colour?"},
        {"role": "assistant", "content": "red"},
        {"role": "user", "content": "Sure?"},
        {"role": "assistant", "content": " yes "},
    ]
    (question,) = opened({"messages": chat, "images": ["red.png"], "id": "first"}).questions
    assert [message["role"] for message in question.messages] == ["system", "user", "assistant", "user"]
    assert texts(question) == ["Be brief.", "Which colour?", "red", "Sure?"]
    assert question.messages[1]["content"][0] == {"type": "image", "image": str(folder / "red.png")}
    assert (question.id, question.kind, question.metric) == ("first", "one picture", "exact_match")
    assert (question.accepted, question.choices, question.text) == (("yes",), (), "Sure?")
    assert question.turns == ["Which colour?", "red", "Sure?"]


def test_further_fields_say_what_is_right_and_how_it_is_rated(opened):
    row = {"image": "red.png", "question": "Which colour?", "answer": "red"}
    first, second, third, fourth, fifth = opened(
        {**row, "answers": ["crimson", "red"], "metric": "anls", "kind": "colours"},
        {"image": "red.png", "question": "Which colour?", "answers": ["red", "crimson"]},
        {"conversations": [{"from": "human", "value": "Yes?"}], "answers": ["yes"]},
        {**row, "choices": ["red", "blue"]},
        {**row, "mark": "Answer:"},
    ).questions
    assert (first.accepted, first.metric, first.kind) == (("red", "crimson"), "anls", "colours")
    assert second.accepted == ("red", "crimson")
    assert (third.accepted, third.kind, texts(third)) == (("yes",), "text", ["Yes?"])
    assert (fourth.metric, fourth.choices, fourth.accepted) == ("choice", ("red", "blue"), ("red",))
    assert texts(fourth) == ["Which colour?"]
    assert fifth.rate("it looks like blood. Answer: red") == 1
    assert fifth.rate("red. Answer: blue") == 0
    assert fifth.rate(" red ") == 1
    assert first.source == first.id == "mine.jsonl:1"


def test_an_answer_may_be_the_letter_of_a_choice_and_letters_stand_under_the_question(opened):
    row = {"image": "red.png", "question": "Which colour?", "choices": ["red", "blue", "A"]}
    by_text, by_letter, first, written = opened(
        *({**row, "answer": answer} for answer in ("blue", "B", "A")), {**row, "answer": "B", "metric": "letter"}
    ).questions
    assert by_text.accepted == by_letter.accepted == written.accepted == ("blue",)
    assert first.accepted == ("A",)  # a choice's own text comes before letters
    asked = "Which colour?\nA. red\nB. blue\nC. A\nAnswer with the letter of the right choice."
    assert texts(written) == [asked]
    assert written.rate("B") == 1
    assert written.rate("C") == 0


def test_a_metric_for_all_replaces_that_of_the_records(opened):
    row = {"image": "red.png", "question": "Which?", "answer": "red", "choices": ["red", "blue"], "metric": "letter"}
    (question,) = opened(row, metric="anls").questions
    assert question.metric == "anls"
    assert texts(question) == ["Which?"]


def test_tables_hold_lists_as_json_and_folders_are_read(folder):
    (folder / "t.csv").write_text(
        'image,question,answer,choices\nred.png,Which?,red,"[""red"", ""blue""]"\nred.png,Which?,red,\n'
    )
    with_choices, without = open_tasks([str(folder / "t.csv")])[0].questions
    assert with_choices.choices == ("red", "blue")
    assert (without.metric, without.choices) == ("exact_match", ())
    pictures = folder / "captioned"
    pictures.mkdir()
    Image.new("RGB", (8, 8)).save(pictures / "a.png")
    (pictures / "a.txt").write_text("nothing to see\n")
    (captioned,) = open_tasks([str(pictures)], options=ReadOptions(question="What is it?"))[0].questions
    assert (texts(captioned), captioned.accepted, captioned.id) == (["What is it?"], ("nothing to see",), "a.png")


ROW = {"image": "red.png", "question": "Which colour?", "answer": "red"}


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"image": "red.png", "question": "Which?"}, "nor an answer"),
        ({"messages": [{"role": "user", "content": "Which?"}]}, "no assistant message|the last message is the user's"),
        (
            {"messages": [{"role": role, "content": "Hm"} for role in ("user", "assistant", "user")]},
            "the last message is the user's, and nothing answers it; add the expected answer",
        ),
        ({"messages": [{"role": "assistant", "content": "red"}]}, "the answer answers no message of the user"),
        ({**ROW, "choices": ["blue", "green"]}, r"the answer 'red' is none of the choices \['blue', 'green'\]"),
        ({**ROW, "choices": ["blue", "green"], "answer": "C"}, "the answer 'C' is none of the choices"),
        ({**ROW, "choices": ["red"]}, r"needs 'choices', 2 to 26 different texts; the record has \['red'\]"),
        ({**ROW, "choices": ["red", "red"]}, "2 to 26 different texts"),
        (
            {**ROW, "choices": "red, blue"},
            r"'choices' is 'red, blue', not a list of texts; write \[\"one\", \"two\"\]",
        ),
        ({**ROW, "answers": ["red", 3]}, r"'answers' is \['red', 3\], not a list of texts"),
        ({**ROW, "answers": [" "]}, "not a list of texts"),
        ({**ROW, "metric": "letter"}, r"the metric 'letter' needs 'choices', .* the record has \[\]"),
        ({**ROW, "metric": "bleu"}, "the metric 'bleu' is not known; choose one of exact_match, anls"),
        ({**ROW, "kind": 3}, "'kind' is 3, not a text"),
        ({**ROW, "image": "grey.png"}, "the picture 'grey.png' is missing"),
        (["red.png"], "a record is an object with keys"),
    ],
)
def test_a_bad_record_is_named_with_its_line_and_what_to_do(opened, record, message):
    task = opened(ROW, record)
    with pytest.raises(RecordError, match=message) as raised:
        survey(task)
    assert raised.value.source == "mine.jsonl:2"


def test_pictures_are_looked_at_before_anything_is_asked(opened, folder):
    (folder / "broken.png").write_bytes(b"no picture")
    with pytest.raises(RecordError, match=r"mine.jsonl:2: picture 1 .*cannot be read"):
        survey(opened(ROW, {**ROW, "image": "broken.png"}))


def test_a_list_in_a_table_that_is_nested_without_end_is_named_with_its_line(folder):
    (folder / "t.csv").write_text(f"image,question,answer,choices\nred.png,Which?,red,{'[' * 100_000}\n")
    with pytest.raises(RecordError, match=r"t\.csv:2: 'choices' is .*, not a list of texts"):
        survey(open_tasks([str(folder / "t.csv")])[0])


def test_limits_and_access_by_number(opened):
    rows = [{**ROW, "id": number} for number in range(5)]
    questions = opened(*rows, limit=3).questions
    assert [question.id for question in questions] == ["0", "1", "2"]
    assert (questions[-1].id, [question.id for question in questions[1:]]) == ("2", ["1", "2"])
    assert len(opened(*rows, limit=9).questions) == 5
    with pytest.raises(IndexError):
        questions[3]


# The suite


def test_a_split_asks_all_its_kinds_in_turn_and_some_kinds_on_request():
    (task,) = open_tasks(["suite:unseen_pairs"], limit=7)
    kinds = suite.KINDS_OF_SPLIT["unseen_pairs"]
    assert [question.kind for question in task.questions] == [*kinds, *kinds][:7]
    assert task.version == splits.SUITE_VERSION
    (some,) = open_tasks(["suite:test/count,ocr"], limit=4)
    assert [question.kind for question in some.questions] == ["count", "ocr", "count", "ocr"]
    expected = suite.evaluation_set("test", 4, ("count", "ocr"))
    for question, example in zip(some.questions, expected, strict=True):
        assert (question.id, question.accepted, question.metric) == (example.id, (example.answer,), "exact_match")
        assert question.mark == example.mark
        assert question.text == example.messages[-1]["content"][-1]["text"]


def test_suite_stands_for_the_held_out_splits_with_so_many_questions_per_kind(monkeypatch):
    monkeypatch.setattr(eval_tasks, "QUESTIONS_PER_KIND", 2)
    tasks = open_tasks(["suite"])
    assert [task.name for task in tasks] == [f"suite:{split}" for split in eval_tasks.SUITE_SPLITS]
    sizes = [2 * len(suite.KINDS_OF_SPLIT[split]) for split in eval_tasks.SUITE_SPLITS]
    assert [len(task.questions) for task in tasks] == sizes


@pytest.mark.parametrize(
    ("names", "options", "message"),
    [
        (["suite:tests"], {}, "the suite has no split 'tests'; choose one of .*unseen_pairs.*such as suite:test"),
        (["suite:unseen_fonts/count"], {}, "'unseen_fonts' of the suite asks no questions of the kind 'count'; .*ocr"),
        (["nowhere.jsonl"], {}, "the task 'nowhere.jsonl' is neither a file or folder .* give a path, suite"),
        (["suite:test/ocr", "suite:test/ocr"], {"limit": 1}, "the task 'suite:test/ocr' is named twice; name it once"),
        (["suite:test"], {"metric": "choice"}, "metric='choice' needs choices, and the suite's questions have none"),
        (["suite:test"], {"metric": "bleu"}, "metric='bleu' is not known"),
        (["suite:test"], {"limit": 0}, "limit=0 leaves no question; give 1 or more"),
        ([], {}, "no task was named; give suite"),
    ],
)
def test_a_name_or_option_that_means_nothing_is_refused(names, options, message):
    with pytest.raises(ValueError, match=message):
        open_tasks(names, **options)


def test_an_empty_file_is_refused(folder):
    (folder / "empty.jsonl").write_text("\n")
    with pytest.raises(DataError, match=r"empty\.jsonl holds no records"):
        open_tasks([str(folder / "empty.jsonl")])


# What is noted of questions


def test_a_survey_notes_sizes_and_changes_with_whatever_is_asked_or_expected(opened, folder):
    two = {"messages": [{"role": "user", "content": "<image><image>Same?"}, {"role": "assistant", "content": "no"}],
           "images": ["red.png", "blue.png"]}  # fmt: skip
    found = survey(opened(ROW, two))
    assert [entry.sizes for entry in found.entries] == [((10, 20),), ((10, 20), (10, 22))]
    assert [entry.layout for entry in found.entries] == [("image",), ("image", "image")]
    assert survey(opened(ROW, two)).digest == found.digest
    changes = (
        {"answer": "blue"}, {"question": "Which?"}, {"kind": "k"}, {"metric": "anls"}, {"answers": ["rot"]},
        {"image": "blue.png"}, {"id": 7}, {"mark": "So:"}, {"choices": ["red", "blue"], "metric": "exact_match"},
    )  # fmt: skip
    digests = {survey(opened({**ROW, **change}, two)).digest for change in changes}
    assert len(digests | {found.digest}) == len(changes) + 1


def test_a_moved_folder_is_the_same_and_another_picture_in_the_place_of_one_is_not(opened, folder, tmp_path):
    before = survey(opened(ROW))
    (folder / "elsewhere").mkdir()
    moved = (folder / "red.png").rename(folder / "elsewhere" / "red.png")
    after = survey(opened({**ROW, "image": "elsewhere/red.png"}))
    assert after.digest == before.digest
    assert after.entries[0].shows != before.entries[0].shows  # so that it may stand for another, asked blind
    Image.effect_noise((20, 10), 90).convert("RGB").save(moved)
    assert survey(opened({**ROW, "image": "elsewhere/red.png"})).digest != before.digest


def test_a_file_may_be_called_anything(opened, folder):
    (folder / "red.png").rename(folder / "r|ed.png")
    found = survey(opened({**ROW, "image": "r|ed.png"}))
    assert found.entries[0].layout == ("image",)


def entry(kind, shows, layout=("image",)):
    return Entry(kind, "exact_match", ((8, 8),) * len(layout), layout, tuple(shows.split()))


def test_the_other_pictures_are_those_of_the_next_of_the_kind_that_shows_something_else():
    entries = [
        entry("a", "1"), entry("b", "2"), entry("a", "1"), entry("a", "3"), entry("b", "4"), entry("a", "3"),
        entry("c", "5"), entry("d", "", ()), entry("d", "", ()), entry("a", "6 7", ("image", "image")),
        entry("e", "8"), entry("e", "8"),
    ]  # fmt: skip
    # Kind a shows 1, 1, 3, 3: around the end it is 1 again. c and two pictures of a stand alone, d shows nothing,
    # and both of e show the same.
    assert other_pictures(entries) == [3, 4, 3, 0, 1, 0, None, None, None, None, None, None]


def test_pictures_are_exchanged_in_order_and_words_stay():
    def chat(*pictures):
        parts = [{"type": "image", "image": picture} for picture in pictures]
        return [
            {"role": "user", "content": [parts[0], {"type": "text", "text": "One?"}]},
            {"role": "assistant", "content": [{"type": "text", "text": "Yes."}]},
            {"role": "user", "content": [*parts[1:], {"type": "text", "text": "Two?"}]},
        ]

    given = chat("1", "2")
    assert with_pictures(given, chat("3", "4")) == chat("3", "4")
    assert given == chat("1", "2")


def test_text_is_added_to_the_last_words_or_stands_alone():
    chat = [{"role": "user", "content": [{"type": "text", "text": "Which? "}]}]
    assert append_text(chat, " /think")[0]["content"] == [{"type": "text", "text": "Which? /think"}]
    picture = {"type": "image", "image": "a.png"}
    shown = [*chat, {"role": "user", "content": [picture]}]
    assert append_text(shown, "\nA. red")[1]["content"] == [picture, {"type": "text", "text": "A. red"}]
    assert chat[0]["content"][0]["text"] == "Which? "
    assert shown[1]["content"] == [picture]


def test_a_task_may_be_made_by_hand():
    (task,) = open_tasks(["suite:test/colour"], limit=2)
    assert survey(Task("mine", task.questions)).digest == survey(task).digest
