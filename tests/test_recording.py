"""Recordings: a GIF and a page show every step as it was, load nothing, and take hostile text as text."""

import base64
import hashlib
import io
import json
import math
import re
from html.parser import HTMLParser

import pytest
import torch
from PIL import Image, ImageFont
from transformers import AutoTokenizer

from transformers_lladav import BUNDLED_CHECKPOINT, asking, recording_film
from transformers_lladav.denoising_lladav import DenoisingStep
from transformers_lladav.recording import Cell, Frame, Recorder, Recording
from transformers_lladav.recording_film import FRESH_PAPER, MASK, PAPER, paint_frames, place
from transformers_lladav.shape_scenes import make_scene, render_scene
from transformers_lladav.streaming import TokenState

COMMITTED, FRESH, MASKED = TokenState
HOSTILE = "</script><script>alert(1)</script><!-- <b>&amp; \u2028\u2029 ' \" {style} {data} \ud800"


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(BUNDLED_CHECKPOINT)


@pytest.fixture(scope="module")
def ids(tokenizer):
    """Token ids of a text; "_" stands for a mask and "|" for the end."""

    def encode(text):
        parts = re.split(r"([_|])", text)
        special = {"_": [tokenizer.mask_token_id], "|": [tokenizer.eos_token_id]}
        return [token for part in parts for token in special.get(part, tokenizer(part).input_ids)]

    return encode


@pytest.fixture
def replay(ids):
    """Call a recorder as the loop would: (start, rows after the step, confidence of what was written) per step."""

    def run(recorder, block_length, *steps):
        before = None
        for index, (start, rows, confidence) in enumerate(steps):
            tokens = torch.tensor([ids(row) for row in rows])
            before = torch.full_like(tokens, recorder.decoder.mask_token_id) if before is None else before
            block = slice(start, start + block_length)
            committed = tokens[:, block] != before[:, block]
            samples = committed.any(dim=1).nonzero()[:, 0]
            recorder(
                DenoisingStep(
                    block=start // block_length,
                    step=index if start == 0 else 0,
                    start=start,
                    samples=samples,
                    tokens=tokens,
                    committed=committed[samples],
                    candidates=tokens[samples, block],
                    confidence=torch.full_like(committed[samples], confidence, dtype=torch.float64),
                )
            )
            before = tokens
        return recorder

    return run


@pytest.fixture
def picture():
    return Image.new("RGB", (120, 90), (200, 40, 60))


@pytest.fixture
def recording(tokenizer, replay, picture):
    """ "a red star": two steps in the first block, one in the second, which ends the answer."""
    steps = [(0, ["a___"], 0.5), (0, ["a red__"], 0.25), (2, ["a red star|"], 1.0)]
    return replay(Recorder(tokenizer), 2, *steps).finish("What is it?", picture, settings={"steps": 3, "speed": 4 / 3})


# The recorder


def test_frames_go_from_all_masks_to_the_answer(recording, ids):
    assert recording.frames == (
        Frame(tuple(ids("____")), (), (None,) * 4),
        Frame(tuple(ids("a___")), (0,), (0.5, None, None, None)),
        Frame(tuple(ids("a red__")), (1,), (0.5, 0.25, None, None)),
        Frame(tuple(ids("a red star|")), (2, 3), (0.5, 0.25, 1.0, 1.0)),
    )
    assert recording.cells == (Cell("a", 1, 0.5), Cell(" red", 2, 0.25), Cell(" star", 3, 1.0))
    assert (recording.answer, recording.question, recording.steps) == ("a red star", "What is it?", 3)
    assert [recording.cells[1].state(frame) for frame in range(5)] == [MASKED, MASKED, FRESH, COMMITTED, COMMITTED]


def test_one_row_of_a_batch_is_recorded_in_the_steps_it_took_part_in(tokenizer, replay, picture):
    steps = [(0, ["a_", "_|"], 0.5), (0, ["a_", "red|"], 0.75), (0, ["a star", "red|"], 1.0)]
    first = replay(Recorder(tokenizer, sample=0), 2, *steps).finish("", picture)
    second = replay(Recorder(tokenizer, sample=1), 2, *steps).finish("", picture)
    assert first.cells == (Cell("a", 1, 0.5), Cell(" star", 2, 1.0))
    assert second.cells == (Cell("red", 2, 0.75),)
    with pytest.raises(ValueError, match=r"no step of sample 2 was recorded; pass the recorder"):
        replay(Recorder(tokenizer, sample=2), 2, *steps).finish("", picture)


def test_a_new_run_starts_a_new_recording(tokenizer, replay, picture):
    recorder = Recorder(tokenizer)
    for answer in ("red", "star"):
        replay(recorder, 1, (0, [answer], 1.0))
        recording = recorder.finish("", picture)
        assert (recording.answer, recording.steps) == (answer, 1)


def test_infilling_shows_the_whole_answer(tokenizer, ids, replay, picture):
    recorder = Recorder(tokenizer, context_ids=ids("a_ star_ the top|"))
    recording = replay(recorder, 3, (0, ["_ at_"], 0.5), (0, [" red at_"], 0.75)).finish("", picture)
    assert recording.answer == "a red star at the top"
    assert [cell.written for cell in recording.cells] == [0, 2, 0, 1, 0, 0]
    assert [cell.confidence for cell in recording.cells] == [None, 0.75, None, 0.5, None, None]
    assert recording.frames[0].token_ids == tuple(ids("a_ star_ the top|"))
    assert recording.frames[1].fresh == (3,)
    assert [cell.state(0) for cell in recording.cells[:2]] == [COMMITTED, MASKED]
    with pytest.raises(ValueError, match="3 holes for a canvas of 1"):
        replay(Recorder(tokenizer, context_ids=ids("a___")), 1, (0, ["a"], 0.5))


def test_tokens_of_one_character_share_a_cell(tokenizer, replay, picture):
    party = tokenizer("🎉").input_ids
    recorder = Recorder(tokenizer)
    mask = recorder.decoder.mask_token_id
    for step, (written, confidence) in enumerate([([1, 3], 0.5), ([0, 2], 0.75)]):
        committed = torch.tensor([[slot in written for slot in range(4)]])
        tokens = torch.tensor([party if step else [party[slot] if slot in written else mask for slot in range(4)]])
        values = torch.full((1, 4), confidence, dtype=torch.float64)
        recorder(DenoisingStep(0, step, 0, torch.tensor([0]), tokens, committed, tokens, values))
    assert recorder.finish("", picture).cells == (Cell("🎉", 2, 0.5),)


def test_what_follows_a_stop_string_or_stays_a_mask(tokenizer, replay, picture):
    recorder = replay(Recorder(tokenizer), 4, (0, ["a red at_"], -math.inf))
    assert [cell.text for cell in recorder.finish("", picture, length=2).cells] == ["a", " red"]
    assert recorder.finish("", picture).cells[2:] == (Cell(" at", 1, None), Cell(" ░░", None, None))


# The animation


def frames_of(path):
    with Image.open(path) as film:
        frames = []
        for index in range(film.n_frames):
            film.seek(index)
            frames.append((film.convert("RGB"), film.info["duration"]))
        return frames, film.info["loop"]


def test_the_animation_has_a_frame_per_step_and_stays_at_the_end(recording, tmp_path):
    path = tmp_path / "made" / "answer.gif"
    recording.save_gif(path, width=640, milliseconds_per_step=200, hold=1500)
    frames, loop = frames_of(path)
    assert [duration for _, duration in frames] == [200, 200, 200, 200, 1500]
    assert loop == 0  # for ever
    assert {frame.size for frame, _ in frames} == {frames[0][0].size}
    assert frames[0][0].width == 640
    assert [item.name for item in path.parent.iterdir()] == ["answer.gif"]
    for frame, _ in frames:
        assert frame.getpixel((0, 0)) == PAPER
        assert frame.getpixel((60, 60)) == recording.picture.getpixel((60, 60))


def test_a_cell_is_a_grey_block_then_lit_then_ink_on_paper(picture):
    rows = [[MASKED, MASKED], [FRESH, MASKED], [COMMITTED, FRESH], [COMMITTED, COMMITTED]]
    frames = [frame.convert("RGB") for frame in paint_frames(picture, "?", ["red", " star"], rows, 640)]
    counts = [{colour: count for count, colour in frame.getcolors(9999)} for frame in frames]
    area = 200  # pixels; edges of letters have some of every shade
    assert [colours.get(MASK, 0) > area for colours in counts] == [True, True, False, False]
    assert [colours.get(FRESH_PAPER, 0) > area for colours in counts] == [False, True, True, False]
    assert counts[0][MASK] > counts[1][MASK] + area
    # Nothing moves: what "star" covers as a mask lies where its light is two frames later.
    star = [[frame.getpixel((x, y)) for x in range(640) for y in range(frame.height)] for frame in frames[1:3]]
    masked = {index for index, colour in enumerate(star[0]) if colour == MASK}
    lit = {index for index, colour in enumerate(star[1]) if colour == FRESH_PAPER}
    assert len(lit) > area
    assert lit < masked


def test_words_break_between_words_and_only_long_ones_within():
    font = ImageFont.load_default(size=20)
    width = font.getlength("a red star")
    boxes = place(["a", " red", " st", "ar", " at", "\n", "  x"], font, width, 30)
    assert [(box.cell, box.text, box.top) for box in boxes] == [
        (0, "a", 0), (1, "red", 0), (2, "st", 0), (3, "ar", 0), (4, "at", 30), (6, "x", 60),
    ]  # fmt: skip
    assert boxes[3].left == pytest.approx(boxes[2].left + font.getlength("st"))
    assert boxes[4].left == 0
    assert boxes[5].left == pytest.approx(font.getlength("  "))
    narrow = place([" red", " st", "ar"], font, font.getlength("red s"), 30)
    assert [(box.text, box.left, box.top) for box in narrow[1:]] == [("st", 0, 30), ("ar", narrow[1].width, 30)]
    long = place(["m" * 40], font, width, 30)
    assert "".join(box.text for box in long) == "m" * 40
    assert all(box.left == 0 and box.width <= width for box in long)
    assert [box.top for box in long] == [30 * line for line in range(len(long))]


@pytest.mark.parametrize("kind", ["RGBA", "L", "P", "photo", "tall"])
def test_any_picture_does_and_files_stay_small(recording, tmp_path, kind):
    picture = recording.picture.convert(kind) if kind in ("RGBA", "L", "P") else Image.effect_noise((1200, 900), 80)
    picture = picture.resize((30, 900)) if kind == "tall" else picture
    cells = tuple(Cell(f" word{index}", 1 + index % 12, 0.5) for index in range(32))
    frames = recording.frames[:1] * 13
    Recording(frames, "Why?", "", picture, cells=cells).save_gif(tmp_path / "a.gif")
    assert (tmp_path / "a.gif").stat().st_size <= 300_000
    assert len(frames_of(tmp_path / "a.gif")[0]) == 14


def test_transparent_pictures_lie_on_white(recording, tmp_path):
    clear = Image.new("RGBA", (50, 50), (255, 0, 0, 0))
    Recording(recording.frames, "", "", clear, cells=recording.cells).save_gif(tmp_path / "a.gif")
    assert frames_of(tmp_path / "a.gif")[0][0][0].getpixel((60, 60)) == (255, 255, 255)


def test_letters_that_pillows_font_lacks_are_looked_for_on_the_system(monkeypatch):
    tried = []

    def truetype(name, size):
        tried.append(name)
        if len(tried) < 3:
            raise OSError("no such font")

    monkeypatch.setattr("transformers_lladav.recording_film.ImageFont.truetype", truetype)
    assert recording_film._system_font("Was ist das?") is None
    assert tried == []
    assert recording_film._system_font("Was wäre das?") == recording_film.SYSTEM_FONTS[2] == tried[-1]
    tried.clear()
    monkeypatch.setattr("transformers_lladav.recording_film.SYSTEM_FONTS", ("none.ttf",))
    assert recording_film._system_font("é") is None


def test_other_letters_take_a_font(recording, tmp_path):
    with pytest.raises(OSError, match="cannot open resource"):
        recording.save_gif(tmp_path / "a.gif", font=tmp_path / "none.ttf")
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_written_is_refused(recording, tmp_path):
    with pytest.raises(ValueError, match=r"a\.png must end in \.gif; choose another name"):
        recording.save_gif(tmp_path / "a.png")
    with pytest.raises(ValueError, match=r"a\.gif must end in \.html or \.htm"):
        recording.save_html(tmp_path / "a.gif")
    with pytest.raises(ValueError, match="width=100 leaves no room"):
        recording.save_gif(tmp_path / "a.gif", width=100)
    with pytest.raises(ValueError, match="milliseconds_per_step=5 and hold=2500 must be at least 20"):
        recording.save_gif(tmp_path / "a.gif", milliseconds_per_step=5)
    assert list(tmp_path.iterdir()) == []


def test_a_failure_keeps_the_old_animation(recording, tmp_path, monkeypatch):
    path = tmp_path / "a.gif"
    recording.save_gif(path)
    before = path.read_bytes()

    def fail(self, target, **options):
        target.write_bytes(b"half")
        raise OSError("disk is full")

    monkeypatch.setattr(Image.Image, "save", fail)
    with pytest.raises(OSError, match="disk is full"):
        recording.save_gif(path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


# The page


class Page(HTMLParser):
    """Collects elements, attributes, and the content of scripts and styles."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.raw, self.comments, self.texts = [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag in ("script", "style"):
            self.raw.append("")

    def handle_data(self, data):
        if self.elements and self.cdata_elem:
            self.raw[-1] += data
        else:
            self.texts.append(data)

    def handle_comment(self, data):
        self.comments.append(data)

    def find(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture
def saved(recording, tmp_path):
    recording.save_html(tmp_path / "made" / "answer.html")
    return Page((tmp_path / "made" / "answer.html").read_text(encoding="utf-8"))


def embedded(page):
    return json.loads(page.raw[1])


def test_the_page_has_all_of_the_recording(saved, recording):
    content = embedded(saved)
    image = content.pop("picture")
    assert content == {
        "title": "An answer out of masks",
        "question": "What is it?",
        "answer": "a red star",
        "settings": {"steps": "3", "speed": "1.333"},
        "steps": 3,
        "cells": [
            {"text": "a", "written": 1, "confidence": 0.5},
            {"text": " red", "written": 2, "confidence": 0.25},
            {"text": " star", "written": 3, "confidence": 1.0},
        ],
    }
    head, data = image.split(",")
    assert head in ("data:image/png;base64", "data:image/jpeg;base64")
    with Image.open(io.BytesIO(base64.b64decode(data))) as shown:
        assert shown.size == recording.picture.size


def test_the_page_loads_nothing_and_runs_its_own_script_only(saved):
    style, _, script = saved.raw
    (policy,) = [item["content"] for item in saved.find("meta") if item.get("http-equiv") == "Content-Security-Policy"]
    hashes = [base64.b64encode(hashlib.sha256(part.encode()).digest()).decode() for part in (style, script)]
    assert policy == (
        f"default-src 'none'; img-src data:; style-src 'sha256-{hashes[0]}'; script-src 'sha256-{hashes[1]}'; "
        "base-uri 'none'"
    )
    for tag, attributes in saved.elements:
        assert tag not in ("link", "iframe", "object", "embed", "base", "a")
        assert not {"src", "href", "style", "srcset", "action"} & set(attributes)
        assert not [name for name in attributes if name.startswith("on")]
    for text in (style, script):
        assert not re.search(r"https?:|//[a-z]|@import|url\(|innerHTML|eval\(|document\.write", text)


def test_the_page_can_be_used_without_a_mouse_and_without_motion(saved):
    style, _, script = saved.raw
    identified = [attributes["id"] for _, attributes in saved.elements if "id" in attributes]
    assert len(identified) == len(set(identified))
    assert set(re.findall(r'find\("(\w+)"\)', script)) <= set(identified)
    for tag in ("input", "select", "button"):
        for attributes in saved.find(tag):
            assert attributes.get("aria-label") or attributes["id"] == "play"  # which has text
    assert saved.find("img")[0]["alt"]
    assert saved.find("html")[0]["lang"] == "en"
    assert {"aria-live": "polite"}.items() <= next(
        item for item in saved.find("p") if item.get("id") == "spoken"
    ).items()
    for key in ("ArrowLeft", "ArrowRight", "Home", "End"):
        assert key in script
    assert "prefers-reduced-motion" in style
    assert "prefers-reduced-motion" in script
    assert "prefers-color-scheme: dark" in style
    assert (
        "width=device-width" in next(item for item in saved.find("meta") if item.get("name") == "viewport")["content"]
    )


def test_hostile_texts_are_only_texts(recording, tmp_path):
    hostile = Recording(
        recording.frames, HOSTILE, HOSTILE, recording.picture, {HOSTILE: HOSTILE}, HOSTILE, (Cell(HOSTILE, 1, 0.5),)
    )
    hostile.save_html(tmp_path / "hostile.htm")
    recording.save_html(tmp_path / "plain.html")
    text = (tmp_path / "hostile.htm").read_text(encoding="utf-8")
    page, plain = Page(text), Page((tmp_path / "plain.html").read_text(encoding="utf-8"))
    content = embedded(page)
    assert [content["question"], content["answer"], content["title"], content["cells"][0]["text"]] == [HOSTILE] * 4
    assert content["settings"] == {HOSTILE: HOSTILE}
    assert page.elements == plain.elements
    assert page.comments == []
    assert "alert" not in "".join([*page.texts, page.raw[0], page.raw[2]])
    assert not set(page.raw[1]) & set("<>&\u2028\u2029")
    assert text.isascii()


def test_large_pictures_are_embedded_smaller_and_flat(recording, tmp_path):
    large = Image.new("RGBA", (3000, 1500), (0, 0, 255, 0))
    Recording(recording.frames, "", "", large, cells=recording.cells).save_html(tmp_path / "a.html")
    data = embedded(Page((tmp_path / "a.html").read_text()))["picture"].split(",")[1]
    with Image.open(io.BytesIO(base64.b64decode(data))) as shown:
        assert shown.size == (1024, 512)
        assert shown.convert("RGB").getpixel((9, 9)) == (255, 255, 255)


# With the bundled model


def test_a_real_run_is_recorded_to_its_answer(tmp_path):
    assistant = asking.load(device="cpu")
    picture = render_scene(make_scene("demo", 0), 512)
    recorder = Recorder(assistant.processor)
    content = [{"type": "image", "image": picture}, {"type": "text", "text": "Describe the picture."}]
    inputs = assistant.processor.apply_chat_template(
        [{"role": "user", "content": content}],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    )
    output = assistant.model.generate(**inputs, callback_on_step_end=recorder, return_dict_in_generate=True)
    recording = recorder.finish("Describe the picture.", picture)
    assert recording.answer == assistant.processor.tokenizer.decode(output.answers[0])
    assert recording.steps == int(output.denoising_steps[0])
    assert len(recording.cells) == len(output.answers[0])
    assert all(0 < cell.confidence <= 1 and 1 <= cell.written <= recording.steps for cell in recording.cells)
    recording.save_gif(tmp_path / "answer.gif")
    recording.save_html(tmp_path / "answer.html")
    assert (tmp_path / "answer.gif").stat().st_size <= 300_000
    assert (tmp_path / "answer.html").stat().st_size <= 300_000
