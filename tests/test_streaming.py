"""Drafts: cut by token with states, for batches, terminals and threads; the last draft is always the answer."""

import gc
import io
import re
import threading
import time

import pytest
import torch
from transformers import AutoTokenizer

from transformers_lladav import BUNDLED_CHECKPOINT, asking
from transformers_lladav.shape_scenes import make_scene, render_scene
from transformers_lladav.streaming import (
    Draft,
    DraftDecoder,
    LladaVIteratorStreamer,
    LladaVStreamer,
    Piece,
    TokenState,
    stream_generate,
)

COMMITTED, FRESH, MASKED = TokenState


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


@pytest.fixture(scope="module")
def assistant():
    return asking.load(device="cpu")


@pytest.fixture(scope="module")
def inputs(assistant):
    """A batch of three questions about two pictures; the answers have different lengths."""
    conversations = []
    for index, question in ((0, "Describe the picture."), (1, "How many shapes are there?"), (1, "Read the grid.")):
        picture = render_scene(make_scene("demo", index), 96)
        content = [{"type": "image", "image": picture}, {"type": "text", "text": question}]
        conversations.append([{"role": "user", "content": content}])
    return assistant.processor.apply_chat_template(
        conversations,
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        processor_kwargs={"padding": True},
    )


@pytest.fixture(scope="module")
def one(assistant):
    picture = render_scene(make_scene("demo", 0), 96)
    content = [{"type": "image", "image": picture}, {"type": "text", "text": "Describe the picture."}]
    return assistant.processor.apply_chat_template(
        [{"role": "user", "content": content}],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    )


def states(draft):
    return "".join({COMMITTED: "c", FRESH: "f", MASKED: "_"}[piece.state] for piece in draft.pieces)


# Pieces


def test_a_draft_is_cut_by_token_with_states_and_confidences(tokenizer, ids):
    pieces = DraftDecoder(tokenizer).decode(ids("a red_ star|_"), fresh={1}, confidence=[0.9, 0.8, None, 0.7, 1, None])
    assert pieces == (
        Piece("a", COMMITTED, 0.9),
        Piece(" red", FRESH, 0.8),
        Piece(" ░░", MASKED),
        Piece(" star", COMMITTED, 0.7),
    )
    assert Draft(0, pieces, False).text == "a red ░░ star"


def test_masks_have_the_sign_one_likes_and_stand_apart(tokenizer, ids):
    assert [piece.text for piece in DraftDecoder(tokenizer, mask_sign="?").decode(ids("__ red\n_"))] == [
        "?", " ?", " red", "\n", "?",
    ]  # fmt: skip


@pytest.mark.parametrize("text", ["naïve 日本 🎉 x", "\u00e9", "a  b\n\n c", "日本語"])
def test_the_texts_of_all_tokens_make_the_text(tokenizer, text):
    tokens = tokenizer(text).input_ids
    assert tokenizer.decode(tokens) == text
    texts = DraftDecoder(tokenizer).texts(tokens)
    assert len(texts) == len(tokens)
    assert "".join(texts) == text
    assert not any("\ufffd" in part for part in texts)


def test_a_character_belongs_to_the_token_that_completes_it(tokenizer):
    party = tokenizer("🎉").input_ids
    assert len(party) == 4  # its UTF-8 bytes
    decoder = DraftDecoder(tokenizer)
    assert decoder.texts(party) == ["", "", "", "🎉"]
    assert decoder.texts([*tokenizer("x").input_ids, *party, *party]) == ["x", *["", "", "", "🎉"] * 2]
    # A byte that nothing completes is shown as decoders show it; what stands before it is not taken along.
    mask = decoder.mask_token_id
    assert decoder.texts([*party[:2], mask, *party[2:]]) == ["", "\ufffd", "░░", "", "\ufffd\ufffd"]
    assert decoder.texts([party[0], *tokenizer("xy").input_ids])[0] == ""
    assert "".join(decoder.texts([party[0], *tokenizer("xy").input_ids])) == "\ufffdxy"


def test_special_tokens_are_hidden_and_ends_end(tokenizer, ids):
    start, end, padding = tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id
    decoder = DraftDecoder(tokenizer)
    assert decoder.end_token_ids == {end}
    assert [piece.text for piece in decoder.decode([start, *ids("red"), padding, end, *ids("star")])] == [
        "",
        "red",
        "",
    ]
    assert [piece.text for piece in DraftDecoder(tokenizer, end_token_ids=[]).decode(ids("red| star"))] == [
        "red", "", " star",
    ]  # fmt: skip
    assert DraftDecoder(tokenizer, end_token_ids=[padding]).end([5, padding, 6]) == 1


def test_ids_are_looked_up_or_asked_for(official_tokenizer, tokenizer, assistant):
    decoder = DraftDecoder(official_tokenizer)
    assert official_tokenizer.convert_ids_to_tokens(decoder.mask_token_id) == "<|mdm_mask|>"
    assert {official_tokenizer.convert_ids_to_tokens(token) for token in decoder.end_token_ids} == {
        official_tokenizer.eos_token, "<|eot_id|>",
    }  # fmt: skip
    assert DraftDecoder(assistant.processor).mask_token_id == tokenizer.mask_token_id

    class Foreign:
        unk_token_id, eos_token_id = None, 2

        def convert_tokens_to_ids(self, token):
            return None

    with pytest.raises(ValueError, match=r"no <\|mdm_mask\|>; pass mask_token_id=model.config.mask_token_id"):
        DraftDecoder(Foreign())
    assert DraftDecoder(Foreign(), mask_token_id=7).end_token_ids == {2}


# The streamer, fed by hand


def feed(streamer, steps):
    """Call a streamer as `generate` does: a prompt, then (method, rows) per call, then the end."""
    streamer.put(torch.zeros(len(steps[0][1]), 2, dtype=torch.long).squeeze(0))
    for method, rows in steps:
        getattr(streamer, method)(torch.tensor(rows).squeeze(0))
    streamer.end()


def test_fresh_tokens_are_those_since_the_last_draft(tokenizer, ids):
    drafts = []
    feed(
        LladaVStreamer(tokenizer, on_draft=drafts.append),
        [
            ("put_draft", [ids("_ red_")]),
            ("put_draft", [ids("a red_")]),
            ("put_draft", [ids("a red star")]),
            ("put", [ids("a red star")]),
            ("put_draft", [ids("_ the")]),
            ("put_draft", [ids(" at the")]),
            ("put", [ids(" at the")]),
        ],
    )
    assert [states(draft) for (draft,) in drafts] == ["_f_", "fc_", "ccf", "ccc_f", "cccfc", "ccccc"]
    assert [draft.text for (draft,) in drafts][-3:] == ["a red star ░░ the", "a red star at the", "a red star at the"]
    assert [draft.done for (draft,) in drafts] == [False] * 5 + [True]


def test_blocks_without_drafts_are_shown_when_they_are_finished(tokenizer, ids):
    drafts = []
    feed(
        LladaVStreamer(tokenizer, on_draft=drafts.append),
        [("put", [ids("a red")]), ("put", [ids(" star")]), ("put", [[]])],
    )
    assert [(states(draft), draft.text) for (draft,) in drafts] == [
        ("ff", "a red"),
        ("ccf", "a red star"),
        ("ccc", "a red star"),
    ]


def test_samples_of_a_batch_end_by_themselves(tokenizer, ids):
    drafts = []
    feed(
        LladaVStreamer(tokenizer, on_draft=drafts.append),
        [
            ("put_draft", [ids("a__"), ids("_|_"), ids("red|_")]),
            ("put_draft", [ids("a_ star"), ids("red|_"), ids("red|_")]),
            ("put_draft", [ids("a red star"), ids("red|_"), ids("red|_")]),
            ("put", [ids("a red star"), ids("red|_"), ids("red|_")]),
            ("put_draft", [ids("|__"), ids("___"), ids("___")]),
            ("put", [ids("|__"), ids("___"), ids("___")]),
        ],
    )
    assert [[draft.text for draft in step] for step in drafts] == [
        ["a ░░ ░░", "░░", "red"],
        ["a ░░ star", "red", "red"],
        ["a red star", "red", "red"],
        ["a red star", "red", "red"],
        ["a red star", "red", "red"],
    ]
    assert [[draft.done for draft in step] for step in drafts] == [
        [False, False, True], [False, True, True], [False, True, True], [True] * 3, [True] * 3,
    ]  # fmt: skip
    assert [draft.sample for draft in drafts[0]] == [0, 1, 2]


def test_masks_in_a_finished_block_are_no_part_of_the_answer(tokenizer, ids):
    # A stop string ends the first sample; the streamer sees it by the masks that nobody fills.
    drafts = []
    feed(
        LladaVStreamer(tokenizer, on_draft=drafts.append),
        [
            ("put", [ids("a red_"), ids("a red star")]),
            ("put_draft", [ids("__"), ids(" at_")]),
            ("put", [ids("__"), ids(" at the")]),
        ],
    )
    assert [step[0].text for step in drafts] == ["a red ░░", "a red", "a red", "a red"]
    assert [step[0].done for step in drafts] == [False, True, True, True]
    assert drafts[-1][1].text == "a red star at the"


def test_the_prompt_is_shown_on_request(tokenizer, ids):
    drafts = []
    streamer = LladaVStreamer(tokenizer, skip_prompt=False, on_draft=drafts.append)
    for _ in range(2):  # the streamer can be used again
        streamer.put(torch.tensor([tokenizer.bos_token_id, *ids("Where?|")]))
        streamer.put(torch.tensor(ids(" at the")))
        streamer.end()
    assert [draft.text for (draft,) in drafts] == ["Where? at the"] * 4
    assert drafts[0] == drafts[2]


# Printing


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def terminal(monkeypatch):
    for name in ("NO_COLOR", "TTY_COMPATIBLE", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "80")
    return Terminal()


HIDE, SHOW = "\x1b[?25l", "\x1b[?25h"


def test_elsewhere_than_on_a_terminal_only_the_answers_are_printed(tokenizer, ids, capsys):
    long = " ".join(["a red star at the top"] * 10)
    feed(LladaVStreamer(tokenizer), [("put_draft", [ids("_")]), ("put", [ids(long)])])
    assert capsys.readouterr().out == f"{long}\n"
    file = io.StringIO()
    feed(LladaVStreamer(tokenizer, file=file), [("put", [ids("red"), ids("star")])])
    assert file.getvalue() == "[0] red\n[1] star\n"


def test_a_terminal_shows_drafts_in_their_styles_and_keeps_the_answer(tokenizer, ids, terminal):
    streamer = LladaVStreamer(tokenizer, file=terminal)
    feed(streamer, [("put_draft", [ids("a_ star")]), ("put_draft", [ids("a red star")]), ("put", [ids("a red star")])])
    shown = terminal.getvalue()
    assert "\x1b[1;32ma\x1b[0m\x1b[2m ░░\x1b[0m\x1b[1;32m star\x1b[0m" in shown
    assert "a\x1b[1;32m red\x1b[0m star" in shown
    assert shown.endswith("a red star\n")
    assert shown.count(HIDE) == shown.count(SHOW) == 1


def test_a_terminal_numbers_the_samples_of_a_batch(tokenizer, ids, terminal):
    feed(LladaVStreamer(tokenizer, file=terminal), [("put", [ids("[b]red"), ids("[b]star")])])
    assert terminal.getvalue().endswith("\x1b[2m[0] \x1b[0m[b]red\n\x1b[2m[1] \x1b[0m[b]star\n")


def test_an_answer_cannot_command_the_terminal(tokenizer, ids, terminal):
    feed(LladaVStreamer(tokenizer, file=terminal), [("put", [ids("a\x1b[2J\x07\u009b1mb\nc")])])
    assert terminal.getvalue().endswith("a[2J1mb\nc\n")


def test_a_failed_run_gives_the_cursor_back(tokenizer, ids, terminal):
    streamer = LladaVStreamer(tokenizer, file=terminal)
    for _ in range(2):
        streamer.put(torch.tensor([0]))
        streamer.put_draft(torch.tensor(ids("a_")))
        assert terminal.getvalue().count(HIDE) == terminal.getvalue().count(SHOW) + 1
        streamer.reset()
        assert terminal.getvalue().count(HIDE) == terminal.getvalue().count(SHOW)
    streamer.put(torch.tensor([0]))
    streamer.put_draft(torch.tensor(ids("a_")))
    del streamer
    gc.collect()
    assert terminal.getvalue().count(HIDE) == terminal.getvalue().count(SHOW) == 3


# The iterator


def test_iterating_ends_and_can_begin_again(tokenizer, ids):
    streamer = LladaVIteratorStreamer(tokenizer, timeout=5)
    for _ in range(2):
        thread = threading.Thread(target=feed, args=(streamer, [("put", [ids("a red star")])]))
        thread.start()
        texts = [drafts[0].text for drafts in streamer]
        thread.join()
        assert texts
        assert set(texts) == {"a red star"}


def test_a_slow_reader_misses_drafts_but_not_the_last(tokenizer, ids):
    streamer = LladaVIteratorStreamer(tokenizer, timeout=5)
    feed(streamer, [("put_draft", [ids(text)]) for text in ("_ star", "red_", "red star")] * 100)
    waiting = list(streamer)
    assert [(step[0].text, step[0].done) for step in waiting] == [("red star", True)]


def test_waiting_has_a_limit(tokenizer):
    started = time.monotonic()
    with pytest.raises(TimeoutError, match=r"timeout=0\.05 s; allow more"):
        next(LladaVIteratorStreamer(tokenizer, timeout=0.05))
    assert time.monotonic() - started < 5


def test_an_error_comes_after_the_waiting_draft(tokenizer, ids):
    streamer = LladaVIteratorStreamer(tokenizer, timeout=5)
    streamer.put(torch.tensor([0]))
    streamer.put_draft(torch.tensor(ids("red_")))
    streamer.close(RuntimeError("out of memory"))
    assert next(streamer)[0].text == "red ░░"
    with pytest.raises(RuntimeError, match="out of memory"):
        next(streamer)


# With the bundled model


def answers(assistant, output):
    return [assistant.processor.tokenizer.decode(row, skip_special_tokens=True) for row in output.answers]


def test_the_last_drafts_are_the_answers(assistant, inputs, one):
    for batch in (one, inputs):
        drafts = []
        streamer = LladaVStreamer(assistant.processor, on_draft=drafts.append)
        output = assistant.model.generate(**batch, streamer=streamer, return_dict_in_generate=True)
        assert [draft.text for draft in drafts[-1]] == answers(assistant, output)
        assert all(draft.done for draft in drafts[-1])
        assert len(drafts) == int(output.denoising_steps.max()) + 1
        # Of a block of 8, one is written; if that is the end, what stands behind it is not shown.
        assert all(1 <= draft.text.count("░░") <= 7 for draft in drafts[0])


def test_generate_streams_from_a_thread(assistant, inputs):
    output = assistant.model.generate(**inputs, return_dict_in_generate=True)
    before = threading.active_count()
    *_, last = stream_generate(assistant.model, assistant.processor, inputs, timeout=60)
    assert [draft.text for draft in last] == answers(assistant, output)
    assert all(draft.done for draft in last)
    assert threading.active_count() == before


def test_settings_reach_generate_and_its_ends_the_drafts(assistant, one):
    settings = {"max_new_tokens": 32, "block_length": 8, "return_dict_in_generate": True}
    endless = assistant.model.generate(**one, eos_token_id=None, **settings)
    assert endless.answers[0].shape == (32,)
    *_, last = stream_generate(assistant.model, assistant.processor, one, eos_token_id=None, **settings)
    assert len(last[0].pieces) == 32
    stop = " green"
    stopped = assistant.model.generate(
        **one, stop_strings=stop, tokenizer=assistant.processor.tokenizer, return_dict_in_generate=True
    )
    *_, last = stream_generate(assistant.model, assistant.processor, one, stop_strings=stop)
    assert last[0].text == answers(assistant, stopped)[0]


def test_an_error_in_the_thread_reaches_the_reader(assistant, one):
    with pytest.raises(TypeError, match="stepz"):
        list(stream_generate(assistant.model, assistant.processor, one, stepz=3))

    def fail(step):
        raise RuntimeError("the callback fails")

    with pytest.raises(RuntimeError, match="the callback fails"):
        list(stream_generate(assistant.model, assistant.processor, one, callback_on_step_end=fail))


def test_closing_the_iterator_ends_the_generation(assistant, one):
    steps = []
    before = threading.active_count()

    def slow(step):
        steps.append(step)
        time.sleep(0.02)

    drafts = stream_generate(assistant.model, assistant.processor, one, callback_on_step_end=slow)
    next(drafts)
    drafts.close()
    taken = len(steps)
    assert threading.active_count() == before
    assert taken < 24  # what the whole answer takes
    unread = stream_generate(assistant.model, assistant.processor, one, callback_on_step_end=slow)
    unread.close()
    assert len(steps) == taken


def test_a_run_that_hangs_is_left_in_time(assistant, one):
    go_on = threading.Event()
    drafts = stream_generate(
        assistant.model, assistant.processor, one, timeout=0.2, callback_on_step_end=lambda step: go_on.wait(30)
    )
    with pytest.raises(TimeoutError):
        list(drafts)
    go_on.set()
