"""Canvases stand where a plain loop over rows and tokens puts them, and ids without an embedding are refused."""

import re

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from transformers_lladav.canvas_lladav import Canvas, append_canvas, check_tokens, is_whole, open_holes, prompt_tail

MASK, END, PAD = 9, 8, 7


def test_masks_and_a_suffix_stand_behind_the_prompt():
    prompt, mask = torch.tensor([[PAD, 1, 2], [3, 4, 5]]), torch.tensor([[0, 1, 1], [1, 1, 1]])
    canvas = append_canvas(prompt, mask, 2, MASK, torch.tensor([[6], [0]]))
    assert canvas.input_ids.tolist() == [[PAD, 1, 2, MASK, MASK, 6], [3, 4, 5, MASK, MASK, 0]]
    assert canvas.attention_mask.tolist() == [[0, 1, 1, 1, 1, 1], [1] * 6]
    assert canvas.slots.tolist() == [[3, 4]] * 2
    assert canvas.present.tolist() == [[True, True]] * 2
    # Guidance hides the prompt and nothing else.
    assert canvas.blind.tolist() == [[True] * 3 + [False] * 3] * 2
    assert prompt.tolist() == [[PAD, 1, 2], [3, 4, 5]]


def test_without_padding_there_is_no_mask_and_without_a_suffix_nothing_follows():
    canvas = append_canvas(torch.tensor([[1]]), None, 3, MASK, torch.zeros(1, 0, dtype=torch.long))
    assert canvas.input_ids.tolist() == [[1, MASK, MASK, MASK]]
    assert canvas.attention_mask is None
    assert canvas.slots.tolist() == [[1, 2, 3]]
    assert canvas.blind.tolist() == [[True, False, False, False]]


def test_masks_in_a_prompt_are_not_part_of_an_appended_canvas():
    canvas = append_canvas(torch.tensor([[MASK, 1]]), None, 1, MASK, torch.zeros(1, 0, dtype=torch.long))
    assert canvas.slots.tolist() == [[2]]


def holes_of(rows, mask=None, ends=(END,)):
    return open_holes(torch.tensor(rows), None if mask is None else torch.tensor(mask), MASK, list(ends))


def present_slots(canvas):
    return [row[there].tolist() for row, there in zip(canvas.slots, canvas.present, strict=True)]


@pytest.mark.parametrize(("closed", "width"), [(True, 8), (False, 7)])
def test_holes_are_those_of_the_last_message_closed_or_open(closed, width):
    row = [1, END, 2, MASK, 3, MASK, MASK, END][: width if closed else 7]
    canvas = holes_of([row])
    assert canvas.slots.tolist() == [[3, 5, 6]]
    assert canvas.present.tolist() == [[True] * 3]
    assert canvas.blind.tolist() == [[True, True] + [False] * (width - 2)]
    assert canvas.input_ids.tolist() == [row]
    assert canvas.attention_mask is None


def test_rows_with_fewer_holes_have_fewer_present():
    canvas = holes_of([[1, END, MASK, MASK, MASK], [1, END, 2, MASK, END]])
    assert canvas.slots.shape == (2, 3)
    assert canvas.present.tolist() == [[True] * 3, [True, False, False]]
    assert present_slots(canvas) == [[2, 3, 4], [3]]


def test_any_of_several_tokens_ends_a_message():
    canvas = holes_of([[1, 6, 2, MASK, END]], ends=(END, 6))
    assert canvas.blind.tolist() == [[True, True, False, False, False]]
    assert present_slots(canvas) == [[3]]


def test_without_an_end_everything_is_the_last_message():
    for ends in ((END,), ()):
        canvas = holes_of([[1, MASK, 2]], ends=ends)
        assert present_slots(canvas) == [[1]]
        assert not canvas.blind.any()


def test_the_ids_given_are_copied():
    ids = torch.tensor([[1, MASK]])
    canvas = open_holes(ids, None, MASK, [END])
    canvas.input_ids[0, 1] = 0
    assert ids.tolist() == [[1, MASK]]


@pytest.mark.parametrize(
    ("rows", "mask", "message"),
    [
        (
            [[MASK, END, 1, MASK], [MASK, MASK, END, MASK]],
            None,
            "sample 0 has mask tokens at positions [0] outside its last message; only holes in the last assistant "
            "message are filled: build the prompt with processor.infilling_inputs",
        ),
        (
            [[1, END, MASK, 1], [MASK, MASK, END, 1]],
            None,
            "sample 1 has mask tokens at positions [0, 1] outside its last message; only holes in the last assistant "
            "message are filled: build the prompt with processor.infilling_inputs",
        ),
        (
            [[1, MASK], [1, 2]],
            None,
            "sample 1 has no holes to fill; write them as [MASK:n] in the last assistant message and build the "
            "prompt with processor.infilling_inputs",
        ),
        (
            [[1, 2, MASK]],
            [[1, 1, 0]],
            "sample 0 has no holes to fill; write them as [MASK:n] in the last assistant message and build the "
            "prompt with processor.infilling_inputs",
        ),
    ],
)
def test_holes_that_are_missing_or_elsewhere_are_refused(rows, mask, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        holes_of(rows, mask)


def test_holes_of_a_closed_message_are_outside_when_another_begins():
    with pytest.raises(ValueError, match=r"sample 0 has mask tokens at positions \[0\] outside"):
        holes_of([[MASK, END, 1]])


WORDS = st.lists(st.integers(0, 5), max_size=3)
LAST = st.lists(st.sampled_from([0, 1, MASK, MASK]), min_size=1, max_size=6).filter(lambda text: MASK in text)
CONVERSATION = st.tuples(
    st.lists(WORDS, max_size=3),  # earlier messages
    LAST,
    st.booleans(),  # whether the last one is closed
    st.booleans(),  # whether it is padded on the left
)


@given(st.lists(CONVERSATION, min_size=1, max_size=4), st.data())
def test_holes_agree_with_a_plain_loop_whatever_the_padding(conversations, data):
    texts = []
    for earlier, last, closed, _ in conversations:
        tokens = [token for message in earlier for token in (*message, END)]
        texts.append((tokens, [*last, *([END] if closed else [])]))
    width = max(len(before) + len(last) for before, last in texts)
    rows, masks, slots, blind = [], [], [], []
    for (before, last), (*_, left) in zip(texts, conversations, strict=True):
        missing = width - len(before) - len(last)
        # Padding may look like anything, mask tokens and ends included.
        padding = data.draw(st.lists(st.sampled_from([PAD, MASK, END]), min_size=missing, max_size=missing))
        start = missing if left else 0
        rows.append([*padding, *before, *last] if left else [*before, *last, *padding])
        masks.append([int(start <= index < start + width - missing) for index in range(width)])
        first = start + len(before)
        slots.append([first + index for index, token in enumerate(last) if token == MASK])
        blind.append(list(range(start, first)))
    canvas = holes_of(rows, masks)
    assert present_slots(canvas) == slots
    counts = [len(row) for row in slots]
    assert canvas.present.tolist() == [[index < count for index in range(max(counts))] for count in counts]
    hidden = canvas.blind & torch.tensor(masks).bool()  # what padding holds is hidden anyway
    assert [row.nonzero()[:, 0].tolist() for row in hidden] == blind
    assert canvas.input_ids.tolist() == rows
    assert canvas.attention_mask.tolist() == masks


PICTURE = 6


@given(st.data())
def test_the_tail_is_text_behind_the_last_picture(data):
    """Against a walk from the answer to the left."""
    width, prompt = 8, data.draw(st.integers(1, 7))
    row = data.draw(st.lists(st.integers(1, PICTURE), min_size=width, max_size=width))
    padding = data.draw(st.integers(0, prompt - 1))
    left = data.draw(st.booleans())
    mask = [int(place >= padding if left else not prompt - padding <= place < prompt) for place in range(width)]
    length = data.draw(st.integers(0, 8))
    expected = set()
    for place in reversed(range(prompt)):
        if not mask[place]:
            continue
        if row[place] == PICTURE or len(expected) == length:
            break
        expected.add(place)
    blind = torch.arange(width)[None] < prompt
    canvas = Canvas(torch.tensor([row]), torch.tensor([mask]), torch.zeros(1, 1), torch.ones(1, 1), blind)
    found = prompt_tail(canvas, [PICTURE], length)
    assert set(found[0].nonzero()[:, 0].tolist()) == expected
    unpadded = Canvas(**{**vars(canvas), "attention_mask": None})
    assert torch.equal(prompt_tail(unpadded, [99], width), blind)


@pytest.mark.parametrize("kind", [torch.bool, torch.float32, torch.complex64, torch.int32, torch.int64, torch.uint8])
def test_ids_are_whole_numbers(kind):
    assert is_whole(torch.zeros(1, dtype=kind)) == (kind in (torch.int32, torch.int64, torch.uint8))


def test_the_first_id_without_an_embedding_is_named():
    check_tokens("input_ids", torch.tensor([[0, 9]]), 10)
    check_tokens("suffix_ids", torch.zeros(2, 0, dtype=torch.long), 10)
    with pytest.raises(ValueError, match="input_ids hold token 10, but the model has tokens 0 to 9; use its own pr"):
        check_tokens("input_ids", torch.tensor([[0, 10], [-1, 0]]), 10)
