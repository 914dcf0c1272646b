"""Requests in OpenAI's format: what is taken, what is refused and with which words."""

import base64
import io
import re
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pydantic import ValidationError

from picture_server import serving
from transformers_lladav import asking
from transformers_lladav.chat_requests import SETTINGS, ChatRequest, Limits, RequestError, read_messages, read_settings
from transformers_lladav.eval_asking import Asking

TILE = 32


@pytest.fixture(scope="module")
def assistant():
    return asking.load(device="cpu")


def request(**fields):
    return ChatRequest(**{"model": "m", "messages": [{"role": "user", "content": "Hello"}], **fields})


def file_of(picture, kind="PNG", **options):
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def data_url(content, kind="png"):
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def showing(*urls, text="What is this?", detail=None):
    parts = [{"type": "image_url", "image_url": {"url": url} | ({"detail": detail} if detail else {})} for url in urls]
    return request(messages=[{"role": "user", "content": [*parts, {"type": "text", "text": text}]}])


def settings(assistant, defaults=None, limits=None, **fields):
    return read_settings(request(**fields), assistant, defaults or Asking(), limits or Limits())


def noise(width, height):
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


def huge_header(width, height):
    """A PNG of a few bytes that says it is large."""
    chunks = ((b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)), (b"IDAT", zlib.compress(b"\0")))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
        for name, body in chunks
    )


# Settings


def test_without_wishes_the_checkpoint_decides(assistant):
    found = settings(assistant)
    assert (found.generation, found.preset, found.max_tokens) == ({}, None, 48)


@pytest.mark.parametrize(("wanted", "canvas"), [(1, 8), (8, 8), (20, 24), (48, 48)])
def test_the_canvas_holds_whole_blocks_and_the_answer_is_cut(assistant, wanted, canvas):
    found = settings(assistant, max_tokens=wanted)
    assert (found.generation["max_new_tokens"], found.max_tokens) == (canvas, wanted)
    assert settings(assistant, max_completion_tokens=wanted) == found


def test_a_block_of_the_request_or_the_preset_counts(assistant):
    assert settings(assistant, max_tokens=20, block_length=16).generation["max_new_tokens"] == 32
    assert settings(assistant, max_tokens=20, preset="chartqa", max_denoising_steps=32).generation == {
        "max_new_tokens": 32, "max_denoising_steps": 32,
    }  # fmt: skip


def test_a_request_changes_the_settings_of_the_server(assistant):
    defaults = Asking({"threshold": 0.8, "block_length": 16}, "fast")
    found = settings(assistant, defaults, threshold=0.5, temperature=0.7, top_p=0.9, stop="\n")
    assert found.preset == "fast"
    assert found.generation == {
        "threshold": 0.5, "block_length": 16, "temperature": 0.7, "top_p": 0.9, "stop_strings": ["\n"],
    }  # fmt: skip
    assert settings(assistant, defaults, preset="exact").preset == "exact"


def test_null_is_a_value_where_it_means_something(assistant):
    found = settings(assistant, prompt_refresh_interval=None, threshold=None, temperature=None, seed=None)
    assert found.generation == {"prompt_refresh_interval": None, "threshold": None}


def test_fields_that_ask_for_nothing_are_fine(assistant):
    harmless = {
        "n": 1, "frequency_penalty": 0.0, "presence_penalty": 0, "logit_bias": {}, "logprobs": False, "top_p": 1.0,
        "response_format": {"type": "text"}, "tools": [], "tool_choice": "none", "user": "me", "metadata": {"a": "b"},
        "store": False, "top_logprobs": None, "modalities": ["text"],
    }  # fmt: skip
    assert settings(assistant, **harmless) == settings(assistant)


@pytest.mark.parametrize(
    ("fields", "param", "words"),
    [
        ({"n": 2}, "n", "n=2 cannot be honoured: one answer is given per request"),
        ({"frequency_penalty": 0.5}, "frequency_penalty", "use no_repeat_ngram_size"),
        ({"logprobs": True}, "logprobs", "no such probabilities"),
        ({"response_format": {"type": "json_object"}}, "response_format", "held to a format"),
        ({"tools": [{"type": "function"}]}, "tools", "not taught to call tools"),
        ({"max_tokns": 5}, "max_tokns", "'max_tokns' is not a field of a request here; known are model, messages"),
        ({"cache_implementation": "static"}, "cache_implementation", "is not a field"),
        ({"max_tokens": 5, "max_completion_tokens": 6}, "max_tokens", "disagree"),
        ({"max_tokens": 513}, "max_tokens", "an answer of 520 tokens is longer than the 512"),
        ({"include_drafts": True}, "include_drafts", "send stream=true as well"),
        ({"stream_options": {"include_usage": True}}, "stream_options", "send stream=true as well"),
        ({"preset": "fastest"}, None, "preset='fastest' is not known; choose one of fast"),
        ({"block_length": 7}, None, "max_new_tokens=48 is not a multiple of block_length=7"),
        ({"block_length": "all", "max_tokens": 20}, None, "block_length='all'"),
        ({"block_length": 0, "max_tokens": 20}, None, "block_length=0"),
        ({"threshold": 2}, None, "2"),
        ({"threshold": 0.9, "factor": 1.0}, None, "different rules"),
        ({"max_denoising_steps": 5}, None, "max_denoising_steps=5"),
        ({"top_p": 0.5}, None, "needs temperature > 0"),
        ({"stop": [""]}, None, "stop_strings"),
        ({"stop": ["x"] * 17}, "stop", "17 texts that end an answer are more than the 16 that are allowed"),
    ],
)  # fmt: skip
def test_what_cannot_be_honoured_is_refused_with_the_reason(assistant, fields, param, words):
    with pytest.raises(RequestError) as refused:
        settings(assistant, **fields)
    assert words in str(refused.value)
    assert (refused.value.param, refused.value.status) == (param, 400)


@pytest.mark.parametrize(
    "fields",
    [
        {"messages": []},
        {"messages": [{"role": "tool", "content": "x"}]},
        {"messages": [{"role": "user", "content": [{"type": "video", "video": "x"}]}]},
        {"messages": [{"role": "user", "content": "x", "tool_calls": [1]}]},
        {"messages": [{"role": "user"}]},
        {"max_tokens": 0},
        {"temperature": -1},
        {"temperature": float("nan")},
        {"seed": -1},
        {"stream_options": {"include_obfuscation": True}},
    ],
)
def test_malformed_requests_are_no_requests(fields):
    with pytest.raises(ValidationError):
        request(**fields)


def test_the_site_names_every_setting_that_a_request_may_carry():
    page = (Path(__file__).parent.parent / "docs" / "pages" / "applications" / "server.md").read_text()
    told = set(re.findall(r"`(\w+)`", page.partition("Settings of the loop")[2].partition("Everything else")[0]))
    assert told == set(SETTINGS)
    fields = page.partition("| field |")[2].partition("Settings of the loop")[0]
    assert set(ChatRequest.model_fields) - {"model"} <= set(re.findall(r"`(\w+)`", fields))
    limits = Limits()
    assert f"texts that end the answer, {limits.stops} at most" in fields
    assert f"A chat has {limits.messages:,} messages at most." in page


# Messages and pictures


def test_messages_become_a_chat(assistant):
    url = data_url(file_of(Image.new("RGB", (5, 4), "red")))
    asked = request(messages=[
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": [
            {"type": "text", "text": "See:"}, {"type": "image_url", "image_url": {"url": url}},
        ]},
        # As clients send an answer back.
        {"role": "assistant", "content": "red", "refusal": None, "tool_calls": None, "audio": None},
        {"role": "user", "content": "And now?"},
    ])  # fmt: skip
    system, first, answer, last = read_messages(asked, Limits(), TILE)()
    assert system == {"role": "system", "content": [{"type": "text", "text": "Be brief."}]}
    assert first["content"][0] == {"type": "text", "text": "See:"}
    assert (first["content"][1]["type"], first["content"][1]["image"].size) == ("image", (5, 4))
    assert first["content"][1]["image"].getpixel((0, 0)) == (255, 0, 0)
    assert answer == {"role": "assistant", "content": [{"type": "text", "text": "red"}]}
    assert last == {"role": "user", "content": [{"type": "text", "text": "And now?"}]}


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"])
def test_usual_formats_are_decoded(kind):
    (message,) = read_messages(showing(data_url(file_of(noise(9, 7), kind))), Limits(), TILE)()
    assert (message["content"][0]["image"].mode, message["content"][0]["image"].size) == ("RGB", (9, 7))


def test_photographs_stand_upright():
    lying = Image.new("RGB", (6, 4))
    exif = lying.getexif()
    exif[0x0112] = 6
    (message,) = read_messages(showing(data_url(file_of(lying, "JPEG", exif=exif), "jpeg")), Limits(), TILE)()
    assert message["content"][0]["image"].size == (4, 6)


def test_low_detail_is_one_tile():
    url = data_url(file_of(noise(100, 50)))
    sizes = {
        detail: read_messages(showing(url, detail=detail), Limits(), TILE)()[0]["content"][0]["image"].size
        for detail in ("low", "high", "auto")
    }
    assert sizes == {"low": (32, 16), "high": (100, 50), "auto": (100, 50)}


@pytest.mark.parametrize(
    ("asked", "status", "words"),
    [
        (lambda: showing(data_url(b"not a picture")), 400, "picture 1 is no picture in one of the formats PNG"),
        (lambda: showing("data:image/png;base64,@@@@"), 400, "picture 1: the data URL is not base64"),
        (lambda: showing("/etc/passwd"), 400, "files of this machine are not opened"),
        (lambda: showing("file:///etc/passwd"), 400, "files of this machine are not opened"),
        (lambda: showing("http://127.0.0.1/x.png"), 400, "this server fetches nothing"),
        (lambda: showing(data_url(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EOF\n")), 400, "is no picture"),
        (lambda: showing(data_url(huge_header(3000, 2000))), 413, "3000 x 2000 pixels, and 5,000,000 are allowed"),
        (lambda: showing(data_url(huge_header(60000, 60000))), 413, "is too large"),
        (lambda: showing(data_url(file_of(noise(40, 40)) * 100)), 413, "bytes or more, and 100,000 are allowed"),
        (lambda: showing(*[data_url(file_of(noise(4, 4)))] * 4), 413, "4 pictures are more than the 3"),
        (lambda: showing(text="x" * 201), 413, "the texts have 201 characters, more than the 200"),
        (lambda: showing(data_url(file_of(noise(4, 4))), text="  "), 400, "the last message has no text"),
        (lambda: request(messages=[{"role": "assistant", "content": "x"}]), 400, "the last message is from the 'a"),
        (lambda: request(messages=[{"role": "user", "content": "x"}] * 8), 413, "8 messages are more than the 7"),
        (lambda: request(stop=["x" * 150, "y" * 46]), 413, "the texts have 201 characters, more than the 200"),
    ],
)  # fmt: skip
def test_what_cannot_be_taken_is_refused_before_decoding(asked, status, words, monkeypatch):
    def decoded(*_):
        raise AssertionError("a picture was decoded")

    limits = Limits(messages=7, pictures=3, picture_bytes=100_000, pixels=5_000_000, characters=200)
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", decoded)
    with pytest.raises(RequestError) as refused:
        read_messages(asked(), limits, TILE)
    assert words in str(refused.value)
    assert refused.value.status == status


def test_only_users_show_pictures():
    url = data_url(file_of(noise(4, 4)))
    part = {"type": "image_url", "image_url": {"url": url}}
    asked = request(messages=[{"role": "assistant", "content": [part]}, {"role": "user", "content": "x"}])
    with pytest.raises(RequestError, match="'assistant' shows a picture; only users can"):
        read_messages(asked, Limits(), TILE)


def test_a_picture_that_is_cut_off_is_found_when_it_is_decoded():
    messages = read_messages(showing(data_url(file_of(noise(64, 64))[:3000])), Limits(), TILE)
    with pytest.raises(RequestError, match="picture 1 cannot be decoded"):
        messages()


@pytest.fixture
def web():
    """A server with a picture, and with too much of one."""
    pages = {"/small.png": file_of(noise(8, 8)), "/large.png": b"\0" * 5000}
    moved = {"/ftp": "ftp://127.0.0.1/x", "/file": "file:///etc/passwd", "/moved": "/small.png"}
    with serving(pages, moved) as url:
        yield url


def test_urls_are_fetched_where_that_is_switched_on(web):
    limits = Limits(allow_urls=True, picture_bytes=1000)
    (message,) = read_messages(showing(f"{web}/small.png"), limits, TILE)()
    assert message["content"][0]["image"].size == (8, 8)
    with pytest.raises(RequestError, match=r"1,001 bytes or more, and 1,000 are allowed"):
        read_messages(showing(f"{web}/large.png"), limits, TILE)
    with pytest.raises(RequestError, match=r"cannot be fetched from .*404"):
        read_messages(showing(f"{web}/none.png"), limits, TILE)
    with pytest.raises(RequestError, match="files of this machine"):
        read_messages(showing("ftp://127.0.0.1/x"), limits, TILE)
    assert read_messages(showing(f"{web}/moved"), limits, TILE)()[0]["content"][0]["image"].size == (8, 8)
    for path in ("ftp", "file"):
        with pytest.raises(RequestError, match="cannot be fetched from"):
            read_messages(showing(f"{web}/{path}"), limits, TILE)


def test_a_picture_that_trickles_in_is_given_up(web, monkeypatch):
    clock = iter(range(0, 1000, 6))
    monkeypatch.setattr("transformers_lladav.opening_lladav.time.monotonic", lambda: next(clock))
    monkeypatch.setattr("transformers_lladav.opening_lladav.READ_BYTES", 1)
    with pytest.raises(RequestError, match="it took longer than 10 s"):
        read_messages(showing(f"{web}/small.png"), Limits(allow_urls=True), TILE)
