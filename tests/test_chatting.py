"""A conversation: what was said is kept as it was said, taken back, saved to be read again, and survives mistakes."""

import json
from pathlib import Path

import pytest
from PIL import Image

from test_adapters import load_base, save, train
from transformers_lladav import asking
from transformers_lladav.chatting import HELP, Chat, command
from transformers_lladav.shape_scenes import make_scene, render_scene


@pytest.fixture(scope="module")
def assistant():
    return asking.load(device="cpu")


@pytest.fixture
def files(tmp_path):
    paths = [tmp_path / f"{index}.png" for index in (0, 1)]
    for index, path in enumerate(paths):
        render_scene(make_scene("demo", index), 96).save(path)
    return [str(path) for path in paths]


@pytest.fixture
def chat(assistant, files):
    talk = Chat(assistant)
    talk.start_with([(files[0], Image.open(files[0]))])
    return talk


def words(talk):
    return [(message["role"], message["content"][-1]["text"]) for message in talk.messages]


def test_the_first_answer_is_that_of_ask(chat, assistant, files):
    question = "How many shapes are there?"
    assert chat.send(question) == asking.ask(assistant, files[0], question)
    assert words(chat) == [("user", question), ("assistant", chat.messages[1]["content"][0]["text"])]


def test_the_model_sees_the_history(chat, monkeypatch):
    seen = []
    template = chat.assistant.processor.apply_chat_template
    monkeypatch.setattr(
        chat.assistant.processor,
        "apply_chat_template",
        lambda chats, **kw: seen.extend(chats) or template(chats, **kw),
    )
    first = chat.send("How many shapes are there?").text
    chat.send("Describe the picture.")
    assert [message["role"] for message in seen[1]] == ["user", "assistant", "user"]
    assert seen[1][1]["content"] == [{"type": "text", "text": first}]
    kinds = [[part["type"] for part in message["content"]] for message in seen[1]]
    assert kinds == [["image", "text"], ["text"], ["text"]]


def test_a_question_that_fails_leaves_the_conversation_as_it_was(chat, files):
    chat.send("How many shapes are there?")
    chat.add_picture(files[1])
    before = list(chat.messages)
    with pytest.raises(ValueError, match="the question is empty"):
        chat.send("  ")
    with pytest.raises(ValueError, match="but the model has 1024 positions"):
        chat.send("shape " * 1200)
    assert chat.messages == before
    assert [source for source, _ in chat.waiting] == [files[1]]


def test_undo_gives_the_picture_back_to_the_next_question(chat, files):
    assert not chat.undo()
    chat.send("How many shapes are there?")
    chat.add_picture(files[1])
    chat.send("And here?")
    assert chat.sources == files
    assert chat.undo()
    assert chat.sources == files[:1]
    assert [source for source, _ in chat.waiting] == files[1:]
    assert len(chat.messages) == 2
    chat.undo()
    assert [source for source, _ in chat.waiting] == files


def test_clear_keeps_the_first_pictures_only(chat, files):
    chat.send("How many shapes are there?")
    chat.add_picture(files[1])
    chat.clear()
    assert chat.messages == []
    assert [source for source, _ in chat.waiting] == files[:1]


def test_a_saved_conversation_can_be_loaded_and_read(chat, files, tmp_path):
    chat.send("How many shapes are there?")
    chat.add_picture(files[1])
    chat.send("Is `a` <b> | two?")
    chat.save(tmp_path / "talk.json")
    saved = json.loads((tmp_path / "talk.json").read_text())["messages"]
    images = [part["image"] for message in saved for part in message["content"] if part["type"] == "image"]
    assert images == files
    again = chat.assistant.processor.apply_chat_template(saved, tokenize=True, return_dict=True, return_tensors="pt")
    assert again.pixel_values.shape[0] == 2
    chat.save(tmp_path / "deep" / "talk.md")
    text = (tmp_path / "deep" / "talk.md").read_text()
    assert text.count("**You**") == text.count("**LLaDA-V**") == 2
    assert f"![]({files[1]})" in text
    with pytest.raises(ValueError, match=r"talk.txt ends in '.txt'; give a file that ends in .json or .md"):
        chat.save(tmp_path / "talk.txt")


def test_pictures_whose_names_hold_spaces_are_shown(chat, files, tmp_path):
    picture = tmp_path / "my photo (1).png"
    picture.write_bytes(Path(files[0]).read_bytes())
    chat.add_picture(picture)
    chat.send("How many shapes are there?")
    chat.save(tmp_path / "talk.md")
    text = (tmp_path / "talk.md").read_text()
    assert (f"![]({files[0]})" in text, f"![](<{picture}>)" in text) == (True, True)


def test_the_tag_of_a_preset_goes_after_the_question_and_is_not_kept(chat, assistant, files, monkeypatch):
    asked = []
    template = chat.assistant.processor.apply_chat_template
    monkeypatch.setattr(
        chat.assistant.processor,
        "apply_chat_template",
        lambda chats, **kw: asked.append(chats[0][-1]["content"][-1]["text"]) or template(chats, **kw),
    )
    chat.settings = {"preset": "mmmu"}
    answer = chat.send("Which letter?")
    assert asked == ["Which letter? /no_think"]
    assert answer == asking.ask(assistant, files[0], "Which letter?", preset="mmmu")
    assert words(chat)[0] == ("user", "Which letter?")


def test_commands(chat, files, tmp_path):
    assert command(chat, "/help") == HELP
    assert command(chat, "/quit") is None
    assert command(chat, "/undo") == "There is nothing to take back."
    chat.send("How many shapes are there?")
    assert command(chat, f'/image "{files[1]}"') == f"{files[1]} goes with the next question."
    assert [source for source, _ in chat.waiting] == [files[1]]
    assert command(chat, f"/save {tmp_path / 'a.md'}") == f"Saved to {tmp_path / 'a.md'}."
    assert (tmp_path / "a.md").exists()
    assert command(chat, "/undo") == "Taken back."
    assert command(chat, "/clear") == "Started again."
    for line, message in (
        ("/save", "/save needs a file: /save FILE"),
        ("/image", "/image needs a file"),
        ("/adapter", "/adapter needs a folder, or off: /adapter DIR"),
        ("/adapter gone.dir/x/y", "gone.dir/x/y is neither a folder nor a Hub id"),
        ("/dance", "/dance is not a command; type /help"),
        ("/image gone.png", "cannot be read as a picture"),
    ):
        with pytest.raises((ValueError, OSError), match=message):
            command(chat, line)


def test_an_adapter_comes_and_goes_in_the_middle_of_a_conversation(files, tmp_path):
    chat = Chat(asking.load(device="cpu"), max_new_tokens=8)
    chat.start_with([(files[0], Image.open(files[0]))])
    plain = chat.send("Describe the picture.").text
    folder = save(train(load_base(), 3, size=0.2), tmp_path / "adapter")
    told, texts = [], []
    for rest in (folder, "off", folder):
        chat.undo()
        told.append(command(chat, f"/adapter {rest}"))
        texts.append(chat.send("Describe the picture.").text)
    assert told == [f"Answers come with {folder}.", "Answers come without an adapter.", f"Answers come with {folder}."]
    assert texts[0] == texts[2] != texts[1] == plain
