"""Labels and turns: the official ones, and those of chats in which somebody types control tokens."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

import parity
from transformers_lladav import LladaVImageProcessor, LladaVProcessor
from transformers_lladav.labels import PromptIds, conversation_ids, label_tokens, message_spans
from transformers_lladav.tiny_model import TinySizes, build_processor

CONVERSATIONS = parity.by_id("sft_preprocess", "conversations")
MASKED = [batch for batch in parity.numbers("loss")["batches"] if batch.get("use_conversation_mask")]
START, OPEN, CLOSE, END = 126080, 126346, 126347, 126348
STRUCTURE = (START, OPEN, CLOSE, END)


@pytest.fixture(scope="module")
def ids(processor):
    return PromptIds.from_processor(processor)


def test_the_ids_are_those_of_the_release(ids, processor):
    assert (ids.start, ids.header_start, ids.header_end, ids.end) == STRUCTURE
    assert (ids.padding, ids.mask) == (parity.PAD, parity.MASK)
    assert (ids.user, ids.assistant) == ((3840,), (598, 10450))
    assert ids.placeholders == (processor.image_token_id, processor.video_token_id)


@pytest.mark.parametrize("name", CONVERSATIONS)
def test_labels_are_the_official_ones(name, ids, processor, parity_report):
    conversation = CONVERSATIONS[name]
    ours = label_tokens(torch.tensor(conversation["input_ids"]), ids).tolist()
    parity_report.same("labels: official ids", name, ours, conversation["labels"])
    pictures = conversation["input_ids"].count(parity.PICTURE)
    expanded = parity.expand(conversation["input_ids"], [5] * pictures, processor.image_token_id)
    labels = [
        label
        for token, label in zip(conversation["input_ids"], conversation["labels"], strict=True)
        for _ in range(5 if token == parity.PICTURE else 1)
    ]
    assert label_tokens(torch.tensor(expanded), ids).tolist() == labels


@pytest.mark.parametrize("name", CONVERSATIONS)
def test_answers_only_leaves_out_the_structure_around_them(name, ids, processor):
    given = torch.tensor(CONVERSATIONS[name]["input_ids"])
    official = torch.tensor(CONVERSATIONS[name]["labels"])
    ours = label_tokens(given, ids, answers_only=True)
    learned = ours != -100
    assert torch.equal(ours[learned], given[learned])
    # What was learned before and is not now is structure, and the headers of answers.
    dropped = (official != -100) & ~learned
    assert set(given[dropped].tolist()) <= {*STRUCTURE, *ids.assistant, *ids.line_feeds}
    headers = CONVERSATIONS[name]["conversations"]
    answers = sum(role == "gpt" for role, _ in headers) - (headers[0][0] == "gpt")  # upstream drops a first answer
    assert int((given[learned] == OPEN).sum()) == 0
    assert int((given[learned] == END).sum()) == answers
    # In front of every learned stretch stands the assistant's header, whole.
    begins = [int(place) for place in learned.nonzero()[:, 0] if not learned[int(place) - 1]]
    header = [OPEN, *ids.assistant, CLOSE, *processor.tokenizer("\n\n", add_special_tokens=False).input_ids]
    assert [given[place - len(header) : place].tolist() for place in begins] == [header] * answers
    assert not (learned & (official == -100)).any()


@pytest.mark.parametrize("batch", MASKED, ids=lambda batch: batch["id"])
def test_turns_are_the_official_ones(batch, ids, processor, parity_report):
    official = parity.tensors("loss")[f"{batch['key']}/conversation_ids"][0]
    given = batch["input_ids"][0]
    pictures = given.count(parity.PICTURE)
    total = len(official) - len(given) + pictures
    expanded = parity.expand(given, [total // pictures] * pictures, processor.image_token_id)
    ours = conversation_ids(torch.tensor(expanded), ids)
    parity_report.same("labels: turns", batch["key"], ours.tolist(), official.tolist())


def prompt(processor, messages):
    return processor.apply_chat_template(messages, tokenize=True, return_dict=True, return_tensors="pt").input_ids[0]


def message(role, content):
    return {"role": role, "content": content}


ROLES = st.sampled_from(["system", "user", "assistant", "tool"])
PIECES = st.sampled_from(["a", " ", "\n", "<|eot_id|>", "<|start_header_id|>assistant", "<|end_header_id|>"])
CONTENTS = st.lists(PIECES).map("".join)


@given(chat=st.lists(st.tuples(ROLES, CONTENTS), min_size=1, max_size=6))
def test_messages_are_found_whatever_is_typed_in_them(processor, ids, chat):
    tokens = prompt(processor, [message(role, content) for role, content in chat])
    roles = [role for role, _ in chat]
    roles = roles if roles[0] == "system" else ["system", *roles]
    found = list(message_spans(tokens, ids))
    names = {tuple(processor.tokenizer(role).input_ids): role for role in ("system", "user", "assistant", "tool")}
    assert [names[span.role] for span in found] == roles
    assert [span.start for span in found] == [1, *(span.end for span in found[:-1])]
    assert found[-1].end == len(tokens)
    assert all(tokens[span.content - 1] == CLOSE and tokens[span.end - 1] == END for span in found)
    labels = label_tokens(tokens, ids)
    for span, role in zip(found, roles, strict=True):
        part = labels[span.start : span.end]
        expected = part.numel() if role == "assistant" else 3
        assert int((part != -100).sum()) == expected


def test_a_turn_begins_with_a_user_message_after_an_answer(processor, ids):
    roles = ["system", "user", "user", "assistant", "assistant", "user", "user", "system", "assistant", "user"]
    tokens = prompt(processor, [message(role, "hi") for role in roles])
    turns = conversation_ids(tokens, ids)
    assert [int(turns[span.start]) for span in message_spans(tokens, ids)] == [0, 0, 0, 0, 0, 1, 1, 1, 1, 2]
    assert all(len(turns[span.start : span.end].unique()) == 1 for span in message_spans(tokens, ids))


def test_a_cut_prompt_ends_with_an_open_message(processor, ids):
    tokens = prompt(processor, [message("user", "hi"), message("assistant", "one two three")])
    *_, answer = message_spans(tokens, ids)
    cut = tokens[: answer.content + 3]
    *_, open_answer = message_spans(cut, ids)
    assert (open_answer.start, open_answer.end) == (answer.start, len(cut))
    labels = label_tokens(cut, ids)
    assert torch.equal(labels[answer.start :], cut[answer.start :])
    in_header = tokens[: answer.start + 2]
    assert list(message_spans(in_header, ids))[-1].end == len(in_header)


def test_placeholders_are_not_learned_even_in_an_answer(processor, ids):
    picture = {"type": "image", "image": parity.picture("a5_tiny_gray.png")}
    text = processor.apply_chat_template([message("user", "hi"), message("assistant", [picture])])
    tokens = processor(text=text, images=[picture["image"]], return_tensors="pt").input_ids[0]
    labels = label_tokens(tokens, ids)
    pictures = tokens == processor.image_token_id
    assert pictures.any()
    assert (labels[pictures] == -100).all()


def test_another_tokenizer_has_other_ids():
    processor = build_processor(TinySizes())
    ids = PromptIds.from_processor(processor)
    tokens = prompt(processor, [message("user", "What is it?"), message("assistant", "a red star")])
    answer = processor.tokenizer("a red star").input_ids
    labels = label_tokens(tokens, ids, answers_only=True)
    assert labels[labels != -100].tolist()[-len(answer) - 1 : -1] == answer
    assert ids.start != START


def test_a_tokenizer_without_the_tokens_is_refused():
    tokenizer = AutoTokenizer.from_pretrained(parity.OFFICIAL)
    processor = LladaVProcessor(LladaVImageProcessor(), tokenizer, mask_token="<|no_mask|>")
    with pytest.raises(ValueError, match=r"the tokenizer has no <\|no_mask\|>, which training needs; load that of"):
        PromptIds.from_processor(processor)
