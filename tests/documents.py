"""The blocks of code in the README and in the pages of the site: found, exempted where a note says so, and run."""

import contextlib
import io
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

# A note in front of a block says why it is not run as it stands: "not run: needs ...", or where it runs.
BLOCK = re.compile(
    r"(?P<note><!-- (not run|runs)[^\n]*-->\n)?```(?P<language>\w+)\n(?P<code>.*?)```"
    r"(?:\n+```text\n(?P<shown>.*?)```)?",
    re.DOTALL,
)


@dataclass(frozen=True)
class Block:
    """A block of code.

    Attributes:
        language: of the fence.
        code: its content.
        note: the remark before it; empty where it runs as it stands.
        shown: the block of text right behind it, which is what it prints; None without one.
    """

    language: str
    code: str
    note: str
    shown: str | None


def blocks_of(text: str, language: str) -> list[Block]:
    """The blocks of a language, in order."""
    found = (
        Block(match["language"], match["code"], match["note"] or "", match["shown"]) for match in BLOCK.finditer(text)
    )
    return [block for block in found if block.language == language]


def run_in_turn(blocks: list[Block]) -> Iterator[tuple[Block, str]]:
    """Run the blocks of a page one after the other, as a reader would: names of one are there for the next.

    Args:
        blocks: of Python.

    Yields:
        Each block that has no note, and what it printed.
    """
    names: dict[str, Any] = {"__name__": "__main__"}
    for block in blocks:
        if not block.note:
            printed = io.StringIO()
            with contextlib.redirect_stdout(printed):
                exec(compile(block.code, "<page>", "exec"), names)
            yield block, printed.getvalue()
