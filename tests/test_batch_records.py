"""Records to answer: every format gives the question without its answer, and bad ones are named with their line."""

import pytest
from PIL import Image

from transformers_lladav.batch_records import read_prompt
from transformers_lladav.eval_tasks import ReadOptions
from transformers_lladav.record_files import Raw, RecordError

CHAT = [{"role": "user", "content": "<image>What is it?"}]
ASKED = [{"type": "image"}, {"type": "text", "text": "What is it?"}]


@pytest.fixture
def folder(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    return ReadOptions().media_folder(tmp_path / "records.jsonl")


def read(record, folder, **options):
    return read_prompt(Raw("records.jsonl:1", record), folder, "prediction", **options)


def words_of(example):
    return [[part.get("text", part["type"]) for part in message["content"]] for message in example.messages]


@pytest.mark.parametrize(
    "record",
    [
        {"image": "a.png", "question": "What is it?"},
        {"image": "a.png", "question": "What is it?", "answer": "a cat"},
        {"image": "a.png", "question": "What is it?", "answer": ""},
        {"messages": CHAT, "images": ["a.png"]},
        {"messages": [*CHAT, {"role": "assistant", "content": "a cat"}], "images": ["a.png"]},
        {"image": "a.png", "conversations": [{"from": "human", "value": "<image>\nWhat is it?"}]},
        {
            "image": "a.png",
            "conversations": [
                {"from": "human", "value": "<image>\nWhat is it?"},
                {"from": "gpt", "value": "a cat"},
            ],
        },
    ],
)
def test_every_format_gives_the_question_and_no_answer(record, folder):
    before = str(record)
    example = read(record, folder)
    assert words_of(example) == [["image", "What is it?"]]
    assert example.messages[0]["role"] == "user"
    assert str(record) == before


def test_earlier_turns_stay(folder):
    turns = [
        {"role": "user", "content": "<image>What is it?"},
        {"role": "assistant", "content": "a cat"},
        {"role": "user", "content": "Which colour?"},
    ]
    assert words_of(read({"messages": turns, "images": ["a.png"]}, folder)) == [
        ["image", "What is it?"],
        ["a cat"],
        ["Which colour?"],
    ]


def test_a_picture_alone_is_asked_the_question_that_is_given(folder):
    assert words_of(read({"image": "a.png"}, folder)) == [["image", "Describe the picture."]]
    assert words_of(read({"image": "a.png"}, folder, question="What colour?")) == [["image", "What colour?"]]


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (
            {"image": "a.png", "prediction": "a cat"},
            r"records\.jsonl:1: the record has 'prediction' already \('a cat'\)",
        ),
        ({"image": "b.png", "question": "What?"}, r"records\.jsonl:1: .*b\.png"),
        ({"image": "../a.png", "question": "What?"}, r"records\.jsonl:1: "),
        (["a.png"], r"records\.jsonl:1: a record is an object with keys"),
        ({"messages": []}, r"records\.jsonl:1: 'messages' is \[\]"),
        ({"messages": [{"role": "assistant", "content": "a cat"}]}, r"records\.jsonl:1: "),
        ({"messages": [{"role": "system", "content": "Be brief."}]}, r"records\.jsonl:1: "),
    ],
)
def test_what_cannot_be_asked_is_refused_with_its_line(record, message, folder):
    with pytest.raises(RecordError, match=f"^{message}"):
        read(record, folder)
