"""A conversation about pictures: its history, and the lines and commands of `lladav chat`."""

import json
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from PIL import Image

from .asking import Answer, Assistant, Picture, answer, read_picture, switch_adapter, tagged, user_message
from .files import write_text
from .streaming import Draft

HELP = """\
/image FILE   show one more picture with the next question
/undo         take the last question and its answer back
/clear        start again with the first pictures
/adapter DIR  answer with this LoRA adapter from now on; /adapter off: without any
/save FILE    write the conversation, as .json (messages) or .md (to read)
/help         this list
/quit         leave"""


class Chat:
    """Keeps what was said, so that the next answer knows of it.

    Args:
        assistant: from `asking.load`.
        **settings: passed to `generate` for every answer; the tag of a `preset` is put after each question.
    """

    def __init__(self, assistant: Assistant, **settings: Any) -> None:
        self.assistant, self.settings = assistant, settings
        self.start_with([])

    def start_with(self, pictures: Iterable[tuple[str, Image.Image]]) -> None:
        """Begin anew, with pictures that go with the first question.

        Args:
            pictures: the name of each, and the picture.
        """
        self.first = list(pictures)
        self.clear()

    def clear(self) -> None:
        """Forget everything but the first pictures."""
        self.messages: list[dict[str, Any]] = []
        self.sources: list[str] = []  # of the pictures in the messages, in order
        self.waiting = list(self.first)

    def add_picture(self, source: Picture) -> None:
        """Show a picture with the next question.

        Args:
            source: an image or the path or URL of one.

        Raises:
            ValueError: if it cannot be read.
        """
        self.waiting.append((str(source), read_picture(source)))

    def send(self, text: str, on_draft: Callable[[Draft], None] | None = None) -> Answer:
        """Ask the next question. Where that fails, the conversation stays as it was.

        Args:
            text: the question.
            on_draft: called after every step with the answer so far.

        Returns:
            The answer.

        Raises:
            ValueError: if the question is empty or the conversation no longer fits the model.
        """
        pictures = [picture for _, picture in self.waiting]
        question = user_message(pictures, text)
        as_asked = tagged(text, self.settings.get("preset"))  # which is no part of what was said
        asked = user_message(pictures, as_asked)
        given = answer(self.assistant, [*self.messages, asked], on_draft, **self.settings)
        reply = {"role": "assistant", "content": [{"type": "text", "text": given.text}]}
        self.messages += [question, reply]
        self.sources += [source for source, _ in self.waiting]
        self.waiting = []
        return given

    def undo(self) -> bool:
        """Take the last question and its answer back; its pictures wait for the next one.

        Returns:
            Whether there was one.
        """
        if not self.messages:
            return False
        question, _ = self.messages[-2:]
        del self.messages[-2:]
        pictures = [part["image"] for part in question["content"] if part["type"] == "image"]
        kept = len(self.sources) - len(pictures)
        self.waiting = [*zip(self.sources[kept:], pictures, strict=True), *self.waiting]
        del self.sources[kept:]
        return True

    def save(self, path: str | Path) -> None:
        """Write the conversation; a crash leaves no half of it.

        Args:
            path: `.json` for messages that `apply_chat_template` takes, `.md` for people.

        Raises:
            ValueError: for another ending.
        """
        path = Path(path)
        if path.suffix not in (".json", ".md"):
            raise ValueError(f"{path} ends in {path.suffix!r}; give a file that ends in .json or .md")
        sources = iter(self.sources)
        messages = [
            {
                "role": message["role"],
                "content": [
                    {"type": "image", "image": next(sources)} if part["type"] == "image" else part
                    for part in message["content"]
                ],
            }
            for message in self.messages
        ]
        text = json.dumps({"messages": messages}, ensure_ascii=False, indent=2) + "\n"
        write_text(path, text if path.suffix == ".json" else _markdown(messages))


def _markdown(messages: list[dict[str, Any]]) -> str:
    lines = []
    for message in messages:
        lines.append(f"**{'You' if message['role'] == 'user' else 'LLaDA-V'}**\n")
        for part in message["content"]:
            lines.append(f"![]({_link(part['image'])})\n" if part["type"] == "image" else f"{part['text']}\n")
    return "\n".join(lines)


def _link(place: str) -> str:
    """The place of a picture as Markdown has it; one with spaces or parentheses stands in angle brackets."""
    return re.sub(r"[<>]", r"\\\g<0>", place).join("<>") if re.search(r"[\s()<>]", place) else place


def command(chat: Chat, line: str) -> str | None:
    """Carry out a line that begins with a slash.

    Args:
        chat: the conversation.
        line: such as "/image other.png".

    Returns:
        What to tell the user; None to leave.

    Raises:
        ValueError: for an unknown command, one without its file, or a file that does not work.
    """
    name, _, rest = line.strip().partition(" ")
    rest = rest.strip().strip("\"'")
    if name == "/adapter":
        if not rest:
            raise ValueError("/adapter needs a folder, or off: /adapter DIR")
        switch_adapter(chat.assistant, None if rest == "off" else rest)
        return "Answers come without an adapter." if rest == "off" else f"Answers come with {rest}."
    if name in ("/image", "/save") and not rest:
        raise ValueError(f"{name} needs a file: {name} FILE")
    if name == "/quit":
        return None
    if name == "/image":
        chat.add_picture(rest)
        return f"{rest} goes with the next question."
    if name == "/save":
        chat.save(rest)
        return f"Saved to {rest}."
    if name == "/undo":
        return "Taken back." if chat.undo() else "There is nothing to take back."
    if name == "/clear":
        chat.clear()
        return "Started again."
    if name == "/help":
        return HELP
    raise ValueError(f"{name} is not a command; type /help for those there are")
