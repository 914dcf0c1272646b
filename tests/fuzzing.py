"""What all fuzz targets share: strategies for hostile input, and the property that every target asserts.

A target is a module of `tests/fuzz/` with a `STRATEGY` that makes cases and a `check(case, place)` that feeds one to
the library. `tests/test_fuzz.py` runs each with a small budget, `tests/fuzz/run.py` with large ones.
"""

import copy
import json
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from types import FrameType, ModuleType
from typing import Any

from hypothesis import strategies as st

TARGETS = ("pictures", "chats", "requests", "configs", "tensors", "records", "settings", "adapters")
SECONDS = 30  # a case that takes longer hangs; the longest real one takes less than one

# What a caller is told to expect. A KeyError or AttributeError is none of them, whatever it says.
REFUSALS = (ValueError, TypeError, OSError)

MARKUP = ("{{ 7 * 7 }}", "{% for x in y %}", "{#", "{{ messages.__class__.__mro__ }}", "<script>alert(1)</script>")
CONTROL = (
    "<image>",
    "<video>\n",
    "<|eot_id|>",
    "<|mdm_mask|>",
    "<|start_header_id|>system<|end_header_id|>",
    "[MASK:3]",
)
ODD = (
    "\ud800",
    "\ufdd0",
    "\ufeffa",
    "\x00",
    "\u202e",
    "\x1b[2J",
    "../../etc/passwd",
    "\\\\host\\share",
    "a" * 300,
    "",
)
NUMBERS = (0, -1, 1, 2**31, 2**63, 10**400, -(10**30), 0.0, -0.0, 1e308, float("nan"), float("inf"), float("-inf"))

texts = st.sampled_from((*MARKUP, *CONTROL, *ODD)) | st.text(max_size=12)
numbers = st.sampled_from(NUMBERS) | st.integers(-3, 200) | st.floats()
scalars = st.none() | st.booleans() | numbers | texts


def nested(levels: int) -> Any:
    """Lists in lists."""
    value: Any = []
    for _ in range(levels):
        value = [value]
    return value


values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=12,
) | st.integers(50, 400).map(nested)


class Finding(AssertionError):
    """Input that the library neither took nor refused as it says."""


def attempt(call: Callable[..., Any], *arguments: Any, refusals: Any = REFUSALS, **keywords: Any) -> Any:
    """Feed something to the library.

    Args:
        call: what is fed.
        *arguments: of it.
        refusals: the errors that it documents.
        **keywords: of it.

    Returns:
        What it returns, or the error it refuses the input with.

    Raises:
        Finding: for any other error, and for one without a word.
    """
    try:
        return call(*arguments, **keywords)
    except refusals as error:
        # UnicodeError is a ValueError and KeyError no OSError, but neither tells a user what to do.
        if isinstance(error, UnicodeError):
            raise Finding(f"a bare {type(error).__name__}: {error}") from error
        if not str(error).strip():
            raise Finding(f"{type(error).__name__} without a word") from error
        return error
    except Finding:
        raise
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt | SystemExit):
            raise
        raise Finding(f"{type(error).__name__}: {str(error)[:300]}") from error


def outcome(*results: Any) -> str:
    """How a case ended, for the counts: "refused" if the last call refused it."""
    return "refused" if isinstance(results[-1], Exception) else "taken"


@contextmanager
def watched(seconds: int = SECONDS) -> Iterator[None]:
    """Turn a hang into a finding."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise Finding(f"still running after {seconds} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def load(name: str) -> ModuleType:
    """A target by its name."""
    return import_module(f"fuzz.{name}")


def checker(name: str, place: Path, counts: Counter[str]) -> Callable[[Any], None]:
    """A target's check as a function of the case alone, which counts how cases end."""
    check = load(name).check

    def run(case: Any) -> None:
        with watched():
            counts[check(case, place)] += 1

    return run


# Documents and bytes that were right once


def _places(document: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    if isinstance(document, dict | list):
        entries = document.items() if isinstance(document, dict) else enumerate(document)
        for key, value in entries:
            yield (*path, key)
            yield from _places(value, (*path, key))


@st.composite
def changed(draw: Any, document: Any, most: int = 3, replacements: Any = values) -> Any:
    """A JSON document in which up to `most` places were replaced, removed, renamed or doubled."""
    document = copy.deepcopy(document)
    for _ in range(draw(st.integers(0, most))):
        places = list(_places(document))
        if not places:
            break
        *path, last = draw(st.sampled_from(places))
        holder = document
        for key in path:
            holder = holder[key]
        change = draw(st.sampled_from(("replace", "replace", "replace", "remove", "rename", "wrap")))
        if change == "replace":
            holder[last] = copy.deepcopy(draw(replacements))  # a later change may go into it
        elif change == "remove":
            del holder[last]
        elif change == "wrap":
            holder[last] = [holder[last]]
        elif isinstance(holder, dict):
            holder[draw(texts)] = holder.pop(last)
    return document


@st.composite
def damaged(draw: Any, contents: tuple[bytes, ...]) -> bytes:
    """Bytes that were a good file: cut, flipped, overwritten, doubled, or joined with another one."""
    content = bytearray(draw(st.sampled_from(contents)))
    for _ in range(draw(st.integers(0, 4))):
        if not content:
            break
        start = draw(st.integers(0, len(content) - 1) | st.integers(0, min(63, len(content) - 1)))
        kind = draw(st.sampled_from(("flip", "flip", "write", "write", "cut", "remove", "insert", "double", "join")))
        if kind == "flip":
            content[start] ^= 1 << draw(st.integers(0, 7))
        elif kind == "write":
            written = draw(st.binary(min_size=1, max_size=8) | st.sampled_from((b"\xff" * 4, b"\0" * 4, b"\x7f\xff")))
            content[start : start + len(written)] = written
        elif kind == "cut":
            del content[start:]
        elif kind == "remove":
            del content[start : start + draw(st.integers(1, 32))]
        elif kind == "insert":
            content[start:start] = draw(st.binary(max_size=32))
        elif kind == "double":
            content[start:start] = content[start : start + draw(st.integers(1, 64))]
        else:
            content[start:] = draw(st.sampled_from(contents))[start:]
    return bytes(content)


@st.composite
def json_bytes(draw: Any, documents: Any) -> bytes:
    """A document as a file that somebody's editor wrote: other encodings, a mark in front, a key twice, and damage."""
    document = draw(documents)
    try:
        text = json.dumps(document, ensure_ascii=draw(st.booleans()), indent=draw(st.none() | st.just(1)))
    except (ValueError, RecursionError):
        text = "[" * 1000
    if text.startswith("{") and len(text) > 2 and draw(st.integers(0, 7)) == 0:
        text = "{" + text[1:-1] + "," + text[1:]  # every key twice
    encoding = draw(st.sampled_from(("utf-8",) * 8 + ("utf-8-sig", "utf-16", "latin-1", "utf-32")))
    content = text.encode(encoding, "surrogatepass" if encoding.startswith("utf") else "replace")
    return draw(damaged((content,))) if draw(st.integers(0, 3)) == 0 else content
