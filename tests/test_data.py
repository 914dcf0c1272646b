"""Training data: every format, every refusal, and that access by number is the same as reading through."""

import json
import pickle
import re
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

import parity
from transformers_lladav.data import DataError, Example, Examples, RecordError, read_examples
from transformers_lladav.media import MediaFolder
from transformers_lladav.record_files import JsonLines, find_columns, iterate_records, load_records
from transformers_lladav.records import read_record

IMAGES = parity.FOLDER / "images"
TINY, LANDSCAPE = str(IMAGES / "a5_tiny_gray.png"), str(IMAGES / "a1_landscape.jpg")
CONVERSATIONS = parity.by_id("sft_preprocess", "conversations")

TEXT = {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]}
ASK, TELL = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}


def official(name):
    """A conversation of the fixtures as a record of the official format."""
    source = CONVERSATIONS[name]
    turns = [{"from": role, "value": text} for role, text in source["conversations"]]
    return {"id": name, "conversations": turns} | ({"image": source["image"]} if source["image"] else {})


def read(record, **options):
    return next(iter(read_examples([record], image_folder=IMAGES, **options)))


def text(words):
    return {"type": "text", "text": words}


def image(path=TINY):
    return {"type": "image", "image": path}


def contents(found):
    return [message["content"] for message in found.messages]


def write_lines(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def refused(sentence, error=RecordError):
    return pytest.raises(error, match=re.escape(sentence))


# Formats


@pytest.mark.parametrize("name", ["single_turn", "two_images", "text_only"])
def test_official_records_give_the_official_training_ids(name, processor, tokenizer, parity_report):
    prompt = processor.apply_chat_template(read(official(name)).messages, image_separator="\n")
    expected = parity.expand(CONVERSATIONS[name]["input_ids"], [1, 1], processor.image_token_id)
    ours = tokenizer(prompt, add_special_tokens=False).input_ids
    parity_report.same("data: training ids", name, ours, expected)


def test_a_picture_stays_where_its_placeholder_stands(processor):
    found = read(official("multi_turn"))
    assert contents(found)[0] == [text("Who is this? "), image()]
    assert contents(found)[1:] == [[text(value)] for _, value in CONVERSATIONS["multi_turn"]["conversations"][1:]]
    assert [message["role"] for message in found.messages] == ["user", "assistant"] * 3
    assert "\n\nWho is this? <image><|eot_id|>" in processor.apply_chat_template(found.messages)


def test_an_official_conversation_that_begins_with_an_answer_loses_it():
    found = read(official("starts_with_gpt"))
    assert contents(found) == [[text("  Hi, what can you do?  ")], [text("  I can answer questions. ")]]
    chat = [{"role": "assistant", "content": "Welcome!"}, ASK, TELL]
    assert contents(read({"messages": chat}))[0] == [text("Welcome!")]


def test_a_placeholder_without_a_picture_is_refused_and_can_be_written_as_text(processor, tokenizer):
    record = official("literal_image_no_file")
    with refused(
        "record 0: 1 <image> placeholder for 0 pictures; give one each (a literal <image> is written in a text part "
        "of the chat format)"
    ):
        read(record)
    (_, question), (_, answer) = CONVERSATIONS["literal_image_no_file"]["conversations"]
    chat = [{"role": "user", "content": [text(question)]}, {"role": "assistant", "content": [text(answer)]}]
    prompt = processor.apply_chat_template(read({"messages": chat}).messages)
    assert processor.image_token_id not in tokenizer(prompt, add_special_tokens=False).input_ids
    assert question in tokenizer.decode(tokenizer(prompt, add_special_tokens=False).input_ids)


PAIRS = {
    "one": ("<image>\nWhat?", [{"type": "image"}, text("What?")], 1),
    "no line feed": ("<image>What?", [{"type": "image"}, text("What?")], 1),
    "two line feeds": ("<image>\n\nWhat?", [{"type": "image"}, text("\nWhat?")], 1),
    "last": ("What?\n<image>", [text("What?\n"), {"type": "image"}], 1),
    "two": ("<image>\n<image>\nCompare.", [{"type": "image"}, {"type": "image"}, text("Compare.")], 2),
    "between": (
        "See <image>\nand <image>.",
        [text("See "), {"type": "image"}, text("and "), {"type": "image"}, text(".")],
        2,
    ),
    "none": ("What?", [text("What?")], 1),
}  # fmt: skip


@pytest.mark.parametrize("name", PAIRS)
@pytest.mark.parametrize("separator", ["", "\n"])
def test_official_and_chat_records_of_the_same_chat_give_the_same_prompt(name, separator, processor):
    value, parts, count = PAIRS[name]
    files = [TINY, LANDSCAPE][:count]
    turns = [{"from": "human", "value": value}, {"from": "gpt", "value": "Yes."}]
    chat = [{"role": "user", "content": parts}, {"role": "assistant", "content": "Yes."}]
    in_strings = [{"role": "user", "content": value}, {"role": "assistant", "content": "Yes."}]
    examples = [
        read({"id": 1, "image": files, "conversations": turns}),
        read({"id": 1, "messages": chat, "images": files}),
        read({"id": 1, "messages": in_strings, "images": files}),
    ]
    assert examples[0] == examples[1] == examples[2]
    assert examples[0].pictures == files
    prompts = {processor.apply_chat_template(found.messages, image_separator=separator) for found in examples}
    assert len(prompts) == 1
    prompt = prompts.pop()
    assert prompt.count("<image>") == count
    assert ("<image>" + separator in prompt) == (name != "last" or not separator)  # the template trims messages


def test_pictures_without_placeholders_stand_before_the_first_user_message():
    system, again = {"role": "system", "content": "Be brief."}, {"role": "user", "content": "And?"}
    found = read({"messages": [system, ASK, TELL, again, TELL], "images": [TINY, LANDSCAPE]})
    assert contents(found)[:2] == [[text("Be brief.")], [image(), image(LANDSCAPE), text("Hi")]]
    assert found.kind == "several pictures"
    assert (found.turns, found.id, found.source) == (2, "record 0", "record 0")


def test_parts_hold_their_pictures_or_take_the_next_of_the_list():
    parts = [{"type": "image", "path": TINY}, {"type": "image"}, {"type": "image", "url": LANDSCAPE}, text("Compare.")]
    found = read({"messages": [{"role": "user", "content": parts}, TELL], "images": [LANDSCAPE]})
    assert contents(found)[0] == [image(), image(LANDSCAPE), image(LANDSCAPE), text("Compare.")]


def test_pictures_in_memory_and_roles_of_either_format():
    picture = Image.new("RGB", (3, 2))
    turns = [{"from": "user", "value": "<image>"}, {"from": "assistant", "value": "A cat."}]
    found = read({"images": [picture], "conversations": turns})
    assert found.pictures == [picture]
    assert found.kind == "one picture"
    mixed = [{"role": "human", "content": "Hi"}, {"role": "gpt", "content": "Hello"}]
    assert read({"messages": mixed}).messages == read(TEXT).messages


@pytest.fixture
def clips(tmp_path):
    """A folder of two videos as folders of frames."""
    for clip in ("one", "two"):
        (tmp_path / clip).mkdir()
        for number in range(2):
            Image.new("RGB", (4, 4)).save(tmp_path / clip / f"{number}.png")
    return tmp_path


@pytest.mark.parametrize(
    ("media", "value", "expected"),
    [
        ({"video": "one"}, "<video>\nWhat?", ["one"]),
        ({"video": "one"}, "<image>\nWhat?", ["one"]),  # as LLaVA's video data write it
        ({"video": "one"}, "What?", ["one"]),
        ({"video": ["one/0.png", "one/1.png"]}, "<video>What?", ["one"]),
        ({"videos": ["one", "two"]}, "<video><video>What?", ["one", "two"]),
        ({"videos": [["one/0.png", "one/1.png"], "two"]}, "What?", ["one", "two"]),
    ],
)
def test_videos_are_folders_or_lists_of_frames(clips, media, value, expected):
    turns = [{"from": "human", "value": value}, {"from": "gpt", "value": "Yes."}]
    (found,) = read_examples([{**media, "conversations": turns}], image_folder=clips)
    assert found.videos == [[str(clips / clip / f"{number}.png") for number in range(2)] for clip in expected]
    assert contents(found)[0][-1] == text("What?")
    assert (found.kind, found.pictures) == ("video", [])


def test_frames_in_memory_are_one_video_and_stand_beside_a_picture():
    frames, picture = [Image.new("RGB", (3, 2)), Image.new("RGB", (3, 2))], Image.new("RGB", (2, 2))
    found = read({"messages": [ASK, TELL], "videos": frames, "images": [picture]})
    assert [part["type"] for part in contents(found)[0]] == ["image", "video", "text"]
    assert found.videos == [frames]


# Files


def test_json_lists_and_lines_and_single_records_are_told_apart(tmp_path):
    record = {"id": "a", **TEXT}
    texts = {
        "list.json": json.dumps([record, record]),
        "pretty.json": "\ufeff" + json.dumps([record, record], indent=2),
        "lines.json": json.dumps(record) + "\n\n" + json.dumps(record) + "\n",
        "lines.jsonl": "\ufeff" + json.dumps(record) + "\r\n" + json.dumps(record),
        "single.json": json.dumps(record, indent=2),
        "unknown": json.dumps([record]),
    }
    found = {}
    for name, content in texts.items():
        (tmp_path / name).write_text(content, encoding="utf-8")
        found[name] = [item.source for item in read_examples(tmp_path / name)]
    step = len(json.dumps(record, indent=2).splitlines())
    assert found == {
        "list.json": ["list.json:1", "list.json:1"],
        "pretty.json": ["pretty.json:2", f"pretty.json:{2 + step}"],
        "lines.json": ["lines.json:1", "lines.json:3"],
        "lines.jsonl": ["lines.jsonl:1", "lines.jsonl:2"],
        "single.json": ["single.json:1"],
        "unknown": ["unknown:1"],
    }


def test_paths_start_at_the_data_file_or_at_the_picture_folder(tmp_path):
    (tmp_path / "pictures").mkdir()
    Image.new("RGB", (2, 2)).save(tmp_path / "pictures" / "a.png")
    lines = [{"image": "pictures/a.png", **TEXT}, {"image": "a.png", **TEXT}]
    files = [write_lines(tmp_path / f"{number}.jsonl", [line]) for number, line in enumerate(lines)]
    expected = [str(tmp_path / "pictures" / "a.png")]
    assert next(read_examples(files[0])).pictures == expected
    assert next(read_examples(str(files[1]), image_folder=tmp_path / "pictures")).pictures == expected
    with refused("1.jsonl:1: the picture 'a.png' is missing: there is no "):
        next(read_examples(files[1]))
    with refused("image_folder='nowhere' is not a folder", DataError):
        next(read_examples(files[1], image_folder="nowhere"))


@pytest.mark.parametrize(("name", "separator"), [("a.csv", ","), ("a.csv", ";"), ("a.tsv", "\t"), ("a.csv", "\t")])
def test_tables_of_picture_question_and_answer(tmp_path, name, separator):
    Image.new("RGB", (2, 2)).save(tmp_path / "a.png")
    rows = [
        ("id", " Photo ", "Prompt", "Caption"),
        ("7", "a.png", '"What,\nis; ""this""?"', "A <image> tag."),
        ("", "", "", ""),
        ("8", "a.png", "", "A dot."),
        ("", "", "Name a prime.", "7"),
        ("", "a.png", "Here: <image>", "A dot."),
    ]
    content = "\r\n".join(separator.join(row) for row in rows)
    (tmp_path / name).write_bytes(b"\xef\xbb\xbf" + content.encode())
    picture = image(str(tmp_path / "a.png"))
    found = list(read_examples(tmp_path / name, question="What is it?"))
    assert [contents(item) for item in found] == [
        [[picture, text('What,\nis; "this"?')], [text("A <image> tag.")]],
        [[picture, text("What is it?")], [text("A dot.")]],
        [[text("Name a prime.")], [text("7")]],
        [[text("Here: "), picture], [text("A dot.")]],
    ]
    assert [item.source for item in found] == [f"{name}:{line}" for line in (2, 5, 6, 7)]
    assert [item.id for item in found] == ["7", "8", f"{name}:6", f"{name}:7"]


def test_records_of_a_table_may_be_json_lines(tmp_path):
    (found,) = read_examples([{"image": TINY, "question": "What?", "answer": "A man."}], image_folder=IMAGES)
    assert contents(found) == [[image(), text("What?")], [text("A man.")]]
    (found,) = read_examples([{"file_name": TINY, "text": "A man."}], image_folder=IMAGES)
    assert contents(found) == [[image(), text("Describe the picture.")], [text("A man.")]]


def test_columns_are_found_by_common_names():
    assert find_columns(["Answer", "IMAGE", "question"]) == {
        "picture": "IMAGE",
        "question": "question",
        "answer": "Answer",
    }
    assert find_columns(["caption", "label", 3, None]) == {"answer": "caption"}


def test_a_folder_of_pictures_with_texts_beside_them(tmp_path):
    for name in ("b.png", "a.jpg", "deep/c.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (2, 2)).save(tmp_path / name)
    (tmp_path / "a.txt").write_text("An a.\n")
    (tmp_path / "deep" / "c.txt").write_text("A c.")
    bad = []
    found = list(read_examples(tmp_path, on_bad=bad.append))
    assert [(item.id, contents(item)[0][-1], contents(item)[1]) for item in found] == [
        ("a.jpg", text("Describe the picture."), [text("An a.")]),
        ("deep/c.png", text("Describe the picture."), [text("A c.")]),
    ]
    assert [str(error) for error in bad] == ["b.png: the picture has no text; write it to b.txt beside the picture"]
    (tmp_path / "b.txt").write_bytes(b"\xff")
    with refused("b.png: b.txt cannot be read as UTF-8 text: "):
        list(read_examples(tmp_path))


def test_a_text_that_links_out_of_its_folder_is_refused(tmp_path):
    (tmp_path / "secret").write_text("secret")
    (tmp_path / "data").mkdir()
    Image.new("RGB", (2, 2)).save(tmp_path / "data" / "a.png")
    (tmp_path / "data" / "a.txt").symlink_to(tmp_path / "secret")
    with refused("a.png: a.txt is a link out of the folder; put a copy in its place"):
        list(read_examples(tmp_path / "data"))


def test_a_folder_with_metadata_is_read_from_them(tmp_path):
    Image.new("RGB", (2, 2)).save(tmp_path / "a.png")
    write_lines(tmp_path / "metadata.jsonl", [{"file_name": "a.png", "text": "A dot."}])
    (found,) = read_examples(tmp_path)
    assert (found.source, found.pictures) == ("metadata.jsonl:1", [str(tmp_path / "a.png")])


# Refusals of files


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("a.json", "", "a.json holds no records"),
        ("a.jsonl", "\n \n", "a.jsonl holds no records"),
        ("a.json", "[]", "a.json holds no records"),
        ("a.csv", "image,answer\n", "a.csv holds no records"),
        ("a.txt", "hello", "a.txt is of no known kind: it begins with b'hello'; give JSON, JSON lines, CSV or TSV"),
        (
            "a.json",
            "[{},\n{]",
            "a.json:2: the file is not JSON: Expecting property name enclosed in double quotes at ",
        ),
        ("a.json", "[{} {}]", "a.json:1: the file is not JSON: after a record stands '{}]', not a comma or a ]"),
        ("a.json", "[{},\n]", "a.json:2: the file is not JSON: after a record stands ']', not a comma or a ]"),
        ("a.json", "[{}\n", "a.json:2: the file is not JSON: after a record stands the end of the file, not a comma"),
        ("a.json", "[", "a.json:1: the file is not JSON: Expecting value at column 2, in the record that begins in "),
        ("a.json", "[{}] 7", "a.json: after the list of records follows '7'; remove it"),
        ("a.json", '{\n"a":1}\n{}', "a.json:1: more follows after the record; put records in a list, or one on each"),
        ("a.json", "[" * 100_000, "a.json:1: the record cannot be read as JSON: "),
        ("a.json", b"[\n\xff]", "a.json:2: the file is not UTF-8; save it as UTF-8"),
        ("a.csv", b"image,answer\n\xff,a\n", "a.csv: the file is not UTF-8; save it as 'CSV UTF-8'"),
        ("a.csv", "image,answer\na," + "x" * 200_000, "a.csv:2: the row cannot be read: field larger than"),
        (
            "a.csv",
            "photo,words\na,b\n",
            "a.csv:1: no column for the question or the answer among ['photo', 'words']; looked for question: "
            "question, prompt, instruction, query, input; answer: answer, caption, response, output, target, text, ",
        ),
        (
            "a.csv",
            "answer\nb\n",
            "a.csv:1: no column for the picture or the question among ['answer']; looked for picture: image, picture, "
            "photo, img, file_name, filename, file, image_path, path; question: ",
        ),
        ("a.parquet", "PAR1", "a.parquet is a Parquet file; pass datasets.load_dataset('parquet', data_files=...)"),
    ],
)
@pytest.mark.parametrize("reader", [lambda path: list(iterate_records(path)), load_records])
def test_files_that_cannot_be_read_say_why(tmp_path, name, content, sentence, reader):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with refused(sentence, DataError) as raised:
        reader(path)
    assert not isinstance(raised.value, RecordError)


@pytest.mark.parametrize("reader", [lambda path: list(read_examples(path)), Examples])
def test_a_missing_file_and_an_empty_folder_say_so(tmp_path, reader):
    for name in ("gone.json", "gone.jsonl", "gone.csv"):
        with refused(f"{tmp_path / name} cannot be read: No such file or directory", DataError):
            reader(tmp_path / name)
    with refused(
        f"{tmp_path} holds no pictures and none of metadata.jsonl, metadata.csv, metadata.tsv, metadata.json",
        DataError,
    ):
        reader(tmp_path)


@pytest.mark.parametrize(
    ("source", "sentence"),
    [
        (
            {"train": []},
            "a dictionary with the keys ['train'] is no list of records; of a dataset with splits give one",
        ),
        (7, "training data are a path or records, not a int"),
        (b"train.json", "training data are a path or records, not a bytes"),
    ],
)
def test_what_is_no_source_is_refused(source, sentence):
    for reader in (read_examples, Examples):
        with refused(sentence, TypeError):
            list(reader(source))
    with refused("a list_iterator has no length and no access by number; use read_examples for a stream", TypeError):
        Examples(iter([TEXT]))


# Refusals of records


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("{", "the line is not JSON: Expecting property name enclosed in double quotes at column 2"),
        (b'{"a": "\xff"}', "the line is not UTF-8 (byte 8)"),
        ("[" * 100_000, "the line cannot be read as JSON: "),
        ("1" * 10_000, "the line cannot be read as JSON: "),
        ("[1]", "a record is an object with keys, not [1]"),
        ("null", "a record is an object with keys, not None"),
    ],
)
def test_bad_lines_are_named_and_the_next_ones_read(tmp_path, line, sentence):
    path = tmp_path / "train.jsonl"
    good = json.dumps(TEXT).encode()
    path.write_bytes(good + b"\n" + (line if isinstance(line, bytes) else line.encode()) + b"\n" + good)
    bad = []
    assert [found.source for found in read_examples(path, on_bad=bad.append)] == ["train.jsonl:1", "train.jsonl:3"]
    assert [str(error).startswith(f"train.jsonl:2: {sentence}") for error in bad] == [True], bad[0]
    for reader in (lambda: list(read_examples(path)), lambda: Examples(path)):
        with refused(f"train.jsonl:2: {sentence}"):
            reader()


def chat(*messages, **fields):
    return {"messages": list(messages), **fields}


NAN = float("nan")
BAD_RECORDS = [
    ({}, "the record has neither 'messages' nor 'conversations', nor an answer; its keys are []; looked for an"),
    ({"conversations": []}, "'conversations' is [], not a list of messages"),
    ({"messages": "Hi"}, "'messages' is 'Hi', not a list of messages"),
    (chat("Hi"), "message 1 is 'Hi', not an object with a role and a content"),
    (chat({"role": "bot", "content": "Hi"}), "message 1 has the role 'bot'; use one of user, assistant, system"),
    (chat({"content": "Hi"}), "message 1 has the role None; use one of "),
    (chat({"role": ["user"], "content": "Hi"}), "message 1 has the role ['user']; use one of "),
    (chat(ASK), "the record has no assistant message to learn from; add an answer"),
    (chat(ASK, {"role": "assistant", "content": " \n"}), "message 2 (assistant) is an empty answer; give it a text"),
    (chat(ASK, {"role": "assistant", "content": []}), "message 2 (assistant) is an empty answer; give it a text"),
    (chat(ASK, {"role": "assistant", "content": [image()]}), "message 2 (assistant) is an empty answer; give i"),
    (chat({"role": "user", "content": ""}, TELL), "message 1 (user) is empty; give it a text or a picture"),
    (chat(ASK, {"role": "system", "content": "Hi"}, TELL), "message 2 is the system's; a system message comes"),
    (chat(ASK, {"role": "assistant"}), "message 2 (assistant) has no content"),
    (chat(ASK, {"role": "assistant", "content": NAN}), "message 2 (assistant) is NaN (a missing value), not a"),
    (chat(ASK, {"role": "assistant", "content": 7}), "message 2 (assistant) is 7, not a text or a list of parts"),
    (chat({"role": "user", "content": ["Hi"]}, TELL), "message 1 (user) has a part 'Hi'; a part is an object w"),
    (chat({"role": "user", "content": [{"type": "audio"}]}, TELL), "message 1 (user) has a part {'type': 'audi"),
    (chat({"role": "user", "content": [{"type": "text"}]}, TELL), "a text of message 1 (user) is missing"),
    (chat({"role": "user", "content": [text(NAN)]}, TELL), "a text of message 1 (user) is NaN (a missing value"),
    (chat({"role": "user", "content": "a\ud800"}, TELL), "message 1 (user) holds '\\ud800', half of a characte"),
    (chat({"role": "user", "content": [text("\udfff")]}, TELL), "message 1 (user) holds '\\udfff', half of a c"),
    (chat({"role": "user", "content": "<image>"}, TELL), "1 <image> placeholder for 0 pictures; give one each"),
    (
        chat({"role": "user", "content": "<image><image>"}, TELL, images=[TINY]),
        "2 <image> placeholders for 1 picture; give one each (a literal <image> is written in a text part of the ",
    ),
    (
        chat({"role": "user", "content": "<image>"}, TELL, images=[TINY, TINY]),
        "1 <image> placeholder for 2 pictures; give one each",
    ),
    (
        chat({"role": "user", "content": [image()]}, TELL, images=[TINY]),
        "0 <image> placeholders for 1 picture; give one each",
    ),
    (chat({"role": "user", "content": "<video>"}, TELL), "1 <video> placeholder for 0 videos; give one each (a"),
    (chat(TELL, images=[TINY]), "the record has a picture and no user message for it to stand in; add one"),
    (chat(ASK, TELL, images=[TINY, TINY], image=TINY), "the record has 'image' and 'images'; give one of them"),
    (chat(ASK, TELL, images=[None]), "a picture is None, not a path"),
    (chat(ASK, TELL, image=NAN), "a picture is NaN (a missing value), not a path"),
    (chat(ASK, TELL, image={"a": 1}), "a picture is {'a': 1}, not a path"),
    (chat(ASK, TELL, image="gone.png"), "the picture 'gone.png' is missing: there is no "),
    (chat(ASK, TELL, image="/etc/passwd"), "the picture '/etc/passwd' lies outside the folder "),
    (chat(ASK, TELL, image="http://host/a.png"), "the picture 'http://host/a.png' is a URL, and URLs are not f"),
    (chat(ASK, TELL, video="gone.mp4"), "the video 'gone.mp4' is missing: there is no "),
    (chat(ASK, TELL, id=[1]), "the id is [1], not a text or a whole number"),
    (chat(ASK, TELL, id=True), "the id is True, not a text or a whole number"),
    (chat(ASK, TELL, id=1.5), "the id is 1.5, not a text or a whole number"),
    ({"answer": "Hello"}, "the record has no picture and no question; looked for picture: image, "),
    ({"question": "Hi", "answer": NAN}, "the answer is NaN (a missing value), not a text"),
    ({"question": "Hi", "answer": None}, "the answer is missing"),
    ({"question": "Hi", "answer": " "}, "message 2 (assistant) is an empty answer; give it a text"),
    ({"question": NAN, "answer": "Hi"}, "message 1 (user) is NaN (a missing value), not a text or a list of parts"),
]  # fmt: skip


@pytest.mark.parametrize(("record", "sentence"), BAD_RECORDS)
def test_bad_records_say_what_is_wrong(record, sentence):
    with refused(f"record 0: {sentence}") as raised:
        read(record)
    assert raised.value.source == "record 0"
    assert sentence in raised.value.reason


def test_pictures_are_checked_as_far_as_asked(tmp_path):
    cut, none = tmp_path / "cut.jpg", tmp_path / "none.jpg"
    cut.write_bytes(Path(LANDSCAPE).read_bytes()[:4000])
    none.write_bytes(b"none")
    records = [chat(ASK, TELL, image=str(path)) for path in (LANDSCAPE, none, cut)]
    for check, good in (("paths", 3), ("headers", 2), ("pixels", 1)):
        bad = []
        options = {"check": check, "allow_outside": True}
        assert len(list(read_examples(records, on_bad=bad.append, **options))) == good
        assert [error.source for error in bad] == ["record 1", "record 2"][: 3 - good]
        examples = Examples(records, skip_bad=True, **options)
        assert (len(examples), [str(error) for error in examples.skipped]) == (good, [str(error) for error in bad])
    with refused("check='all' is not known; use 'paths', 'headers' or 'pixels'", ValueError):
        Examples(records, check="all")
    with refused("record 0: picture 1 (", RecordError):
        next(read_examples(records, allow_outside=True, max_image_pixels=100))


def test_a_row_with_too_many_or_too_few_cells_is_named(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("question,answer\na,b,c\na\na,b\n")
    bad = []
    assert [found.source for found in read_examples(path, on_bad=bad.append)] == ["a.csv:4"]
    assert [str(error) for error in bad] == [
        "a.csv:2: the row has 3 cells, the header has 2; put texts that hold the separator in quotes",
        "a.csv:3: the row has 1 cells, the header has 2; fill the row up",
    ]


def test_a_column_that_stands_twice_is_refused_where_it_is_read(tmp_path):
    """Of a row as a dictionary, one of the two answers would be lost."""
    path = tmp_path / "a.csv"
    path.write_text("question,answer,answer\na,b,c\n")
    with refused(
        "a.csv:1: the column 'answer' stands twice among ['question', 'answer', 'answer']; rename", DataError
    ):
        list(read_examples(path))
    path.write_text("question,answer,note,note\na,b,c,d\n")
    assert [contents(found) for found in read_examples(path)] == [[[text("a")], [text("b")]]]


# Access by number


@pytest.fixture
def lines(tmp_path):
    """Forty records of all formats in lines, blank lines and bad ones between them."""
    kinds = [
        {"image": TINY, **TEXT},
        chat(ASK, TELL, images=[TINY, LANDSCAPE]),
        {"question": "Was für ein Wort?", "answer": "Ünïcödé 🙂"},
        TEXT,
    ]
    records = [{"id": str(number), **kinds[number % 4]} for number in range(40)]
    texts = [json.dumps(record, ensure_ascii=number % 2 == 0) for number, record in enumerate(records)]
    texts[5:5], texts[20:20] = ["", "{bad"], [json.dumps(chat(ASK)), " "]
    path = tmp_path / "train.jsonl"
    path.write_text("\n".join(texts), encoding="utf-8")
    return path


def test_access_by_number_equals_streaming(lines):
    options = {"image_folder": IMAGES}
    stream = list(read_examples(lines, on_bad=lambda error: None, **options))
    examples = Examples(lines, skip_bad=True, **options)
    assert [found.id for found in stream] == [str(number) for number in range(40)]
    assert len(examples) == 40
    assert list(examples) == stream
    assert [examples[number] for number in range(39, -1, -1)] == stream[::-1]
    assert examples[-1] == stream[-1]
    assert examples[3:9:2] == stream[3:9:2]
    assert [error.source for error in examples.skipped] == ["train.jsonl:7", "train.jsonl:21"]
    with pytest.raises(IndexError):
        examples[40]


def test_only_offsets_of_lines_are_held(lines):
    raws = JsonLines(lines)
    assert len(raws) == 42
    assert len(pickle.dumps(raws)) < 42 * 20 + 500
    assert raws[7].source == "train.jsonl:9"
    assert [raw.source for raw in raws[:2]] == ["train.jsonl:1", "train.jsonl:2"]
    values = [raw.value for raw in iterate_records(lines)]
    assert [raw.value for raw in raws if isinstance(raw.value, dict)] == [v for v in values if isinstance(v, dict)]


def test_of_a_folder_s_lines_only_offsets_are_held_as_well(lines):
    folder = lines.parent / "folder"
    folder.mkdir()
    lines.rename(folder / "metadata.jsonl")
    raws = load_records(folder)
    assert isinstance(raws, JsonLines)
    assert [raw.source for raw in raws[:2]] == ["metadata.jsonl:1", "metadata.jsonl:2"]
    assert list(map(str, raws)) == list(map(str, iterate_records(folder)))


def test_examples_are_pickled_with_their_settings(lines):
    examples = Examples(lines, skip_bad=True, image_folder=IMAGES, question="Why?")
    copy = pickle.loads(pickle.dumps(examples))
    assert list(copy) == list(examples)
    assert [str(error) for error in copy.skipped] == [str(error) for error in examples.skipped]
    assert isinstance(examples[0], Example)


@pytest.mark.parametrize("name", ["a.json", "a.csv"])
def test_other_files_and_records_in_memory_have_numbers_too(tmp_path, name):
    records = [{"id": str(number), "question": f"Q{number}", "answer": "A"} for number in range(5)]
    if name == "a.json":
        (tmp_path / name).write_text(json.dumps(records))
    else:
        (tmp_path / name).write_text("id,question,answer\n" + "".join(f"{n},Q{n},A\n" for n in range(5)))
    for source in (tmp_path / name, records):
        assert [Examples(source)[number].id for number in (4, 0)] == ["4", "0"]
        assert list(Examples(source)) == list(read_examples(source))


def test_a_first_look_can_be_left_out_and_bad_records_found_later(lines):
    examples = Examples(lines, check=None, image_folder=IMAGES)
    assert len(examples) == 42
    with refused("train.jsonl:7: the line is not JSON"):
        examples[5]
    with refused("skip_bad=True with check=None: bad records are found by reading; give a check", ValueError):
        Examples(lines, check=None, skip_bad=True)
    with refused("no record is left: all 1 are bad; the first: record 0: the record has neither", DataError):
        Examples([{}], skip_bad=True)
    with refused("no record is left: all 5 are bad; the first: row 0: ", DataError) as raised:
        Examples([{}] * 5, name="row", skip_bad=True)
    assert [f"row {number}: " in str(raised.value) for number in range(4)] == [True, True, True, False]
    assert str(raised.value).endswith(" (and 2 more)")
    with refused("train.jsonl:7: the line is not JSON"):
        Examples(lines, image_folder=IMAGES)


def test_records_in_memory_are_called_as_one_likes():
    records = [TEXT, TEXT]
    assert [found.source for found in read_examples(records, name="owner/name:train record")] == [
        "owner/name:train record 0",
        "owner/name:train record 1",
    ]
    assert Examples(records, name="row")[1].source == "row 1"


def test_progress_ends_at_the_end(lines):
    told, size = [], lines.stat().st_size
    for _ in iterate_records(lines, lambda done, total: told.append((done, total))):
        pass
    assert told[-1] == (size, size)
    assert told == sorted(told)
    JsonLines(lines, lambda done, total: told.append((done, total)))
    assert told[: len(told) // 2] == told[len(told) // 2 :]


def test_datasets_of_the_hub_are_records():
    datasets = pytest.importorskip("datasets")
    rows = {
        "messages": [[ASK, TELL], [{"role": "user", "content": "<image>What?"}, TELL]],
        "images": [[], [Image.new("RGB", (3, 2))]],
    }
    message = {"role": datasets.Value("string"), "content": datasets.Value("string")}
    kinds = [datasets.Image(), datasets.Image(decode=False)]
    data, raw = (
        datasets.Dataset.from_dict(rows, features=datasets.Features({"messages": [message], "images": [kind]}))
        for kind in kinds
    )
    for source in (data, raw, data.to_iterable_dataset()):
        first, second = read_examples(source)
        assert contents(first) == [[text("Hi")], [text("Hello")]]
        assert second.pictures[0].size == (3, 2)
    assert Examples(data)[1].kind == "one picture"


def test_a_record_error_survives_the_way_out_of_a_worker():
    copy = pickle.loads(pickle.dumps(RecordError("it is bad", "a.jsonl:1")))
    assert (str(copy), copy.source, copy.reason) == ("a.jsonl:1: it is bad", "a.jsonl:1", "it is bad")
    assert str(RecordError("a.jsonl:1: it is bad")) == "a.jsonl:1: it is bad"


# Whatever JSON can hold

SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
NAMES = st.sampled_from(
    ["id", "image", "images", "video", "videos", "conversations", "messages", "from", "value", "role", "content",
     "type", "text", "path", "bytes", "question", "answer", "caption"]
)  # fmt: skip
WORDS = st.sampled_from(
    ["<image>", "<video>\nHi", "user", "gpt", "assistant", "system", "text", "image", "a5_tiny_gray.png"]
)
VALUES = st.recursive(
    SCALARS | WORDS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(NAMES, inner, max_size=6),
    max_leaves=25,
)
MESSAGES = st.lists(
    st.fixed_dictionaries({"role": st.sampled_from(["user", "assistant", "system"]), "content": WORDS | VALUES}),
    max_size=4,
)
RECORDS = VALUES | st.fixed_dictionaries(
    {"messages": MESSAGES}, optional={"images": VALUES, "videos": VALUES, "id": VALUES}
)


@settings(max_examples=400, deadline=None)
@given(RECORDS)
@example({"messages": [{"role": "user", "content": "<image>"}, TELL], "images": {"bytes": "nonsense"}})
@example({"messages": [ASK, TELL], "images": {"path": {"path": {"path": None}}}})
@example({"conversations": [{"from": {}, "value": []}]})
def test_no_json_value_makes_the_reader_raise_anything_but_its_own_error(record):
    folder = MediaFolder(IMAGES)
    try:
        found = read_record(record, "train.jsonl:1", folder)
    except RecordError as raised:
        found = raised
    if isinstance(found, RecordError):
        assert str(found).startswith("train.jsonl:1: ")
        return
    assert found.turns > 0
    for message in found.messages:
        assert set(message) == {"role", "content"}
        assert all(set(part) == {"type", part["type"]} for part in message["content"])
    pickle.dumps(found)


@settings(max_examples=200, deadline=None)
@given(
    st.binary(max_size=60) | st.text(max_size=40).map(lambda text: ('{"messages": ' + text).encode("utf-8", "replace"))
)
def test_no_bytes_make_the_reader_raise_anything_but_its_own_error(tmp_path_factory, content):
    folder = tmp_path_factory.mktemp("bytes")
    for name in ("a.json", "a.jsonl", "a.csv", "a.tsv", "a"):
        (folder / name).write_bytes(content)
        bad = []
        try:
            list(read_examples(folder / name, on_bad=bad.append))
        except DataError as error:
            bad.append(error)
        assert all(name in str(error) for error in bad)
