"""The collator: official losses, losses worked out by hand, batches that are the same however they are made."""

import copy
import itertools
import math
import re

import pytest
import torch
from torch.utils.data import DataLoader

import parity
from transformers_lladav.batches import TrainingBatches
from transformers_lladav.checkpoint_keys_lladav import native_key
from transformers_lladav.collation import Collator
from transformers_lladav.noise import Noise
from transformers_lladav.prompt_view import PromptViewer
from transformers_lladav.samples import Numbered

BATCHES = {batch["key"]: batch for batch in parity.numbers("loss")["batches"] if "error" not in batch}
CONVERSATIONS = parity.by_id("sft_preprocess", "conversations")
# Whitespace around contents is trimmed here, as it is when the model is asked; the official training keeps it.
TRIMMED = ("starts_with_gpt", "literal_image_no_file")
IGNORED = -100


def official_messages(name):
    """A conversation as the official code reads it: pictures come first, an answer before any question is dropped."""
    record = CONVERSATIONS[name]
    files = record["image"] or []
    pictures = [{"type": "image", "image": parity.picture(f)} for f in ([files] if isinstance(files, str) else files)]
    turns = record["conversations"][record["conversations"][0][0] == "gpt" :]
    messages = []
    for role, text in turns:
        if role == "human":
            text = text.replace("<image>", "").strip() if pictures else text
            messages.append({"role": "user", "content": [*pictures, {"type": "text", "text": text}]})
            pictures = []
        else:
            messages.append({"role": "assistant", "content": [{"type": "text", "text": text}]})
    return messages


def talk(question, answer="An answer.", picture=None):
    content = [{"type": "text", "text": question}]
    if picture:
        content.insert(0, {"type": "image", "image": parity.picture(picture)})
    return {"messages": [{"role": "user", "content": content}, {"role": "assistant", "content": answer}]}


SHORT = talk("Name three primes.", "2, 3 and 5.")
LONG = talk("Tell me about a star. " * 3, "It is round. " * 6)
TURNS = {
    "messages": [
        {"role": role, "content": content}
        for role, content in (("user", "Hi"), ("assistant", "Hello."), ("user", "And?"), ("assistant", "Bye."))
    ]
}
SEEN = talk("What is it?", picture="a5_tiny_gray.png")


def numbered(examples, epoch=0):
    data = Numbered(examples)
    data.set_epoch(epoch)
    return [data[index] for index in range(len(examples))]


def same(first, second):
    return set(first) == set(second) and all(torch.equal(first[name], second[name]) for name in first)


@pytest.fixture(scope="module")
def trained(model):
    """A copy of the official tiny model in training mode."""
    return copy.deepcopy(model).train().requires_grad_(True)


@pytest.fixture(scope="module")
def flat(model):
    """The official tiny model with a head of zeros: every token is as likely as any other."""
    flattened = copy.deepcopy(model)
    torch.nn.init.zeros_(flattened.lm_head.weight)
    return flattened


def loss_of(model, batch):
    with torch.no_grad():
        return float(model(**batch).loss)


# --- The official numbers


@pytest.mark.parametrize("name", [name for name in CONVERSATIONS if name not in TRIMMED])
def test_ids_and_labels_are_those_of_the_official_training(name, processor, parity_report):
    row = Collator(processor).prepare({"messages": official_messages(name)})
    counts = iter(row.media["image_tile_counts"].tolist() if row.media else [])
    record = CONVERSATIONS[name]
    pictures = record["input_ids"].count(parity.PICTURE)
    each = [int((row.input_ids == processor.image_token_id).sum()) // max(pictures, 1)] * pictures
    expected = parity.expand(record["input_ids"], each, processor.image_token_id)
    labels = parity.expand(
        [parity.PICTURE if token == parity.PICTURE else label for token, label in
         zip(record["input_ids"], record["labels"], strict=True)],
        each,
        IGNORED,
    )  # fmt: skip
    parity_report.same("collator: ids", name, row.input_ids.tolist(), expected)
    parity_report.same("collator: labels", name, row.labels.tolist(), labels)
    assert list(counts) == [shape[0] if len(shape) == 4 else 1 for shape in record["image_shapes"]][: len(row.media)]


@pytest.mark.parametrize("name", TRIMMED)
def test_ids_differ_from_the_official_ones_by_trimmed_whitespace_only(name, processor, tokenizer):
    row = Collator(processor).prepare({"messages": official_messages(name)})
    official = tokenizer.decode(CONVERSATIONS[name]["input_ids"])
    for _, text in CONVERSATIONS[name]["conversations"]:
        official = official.replace(text, text.strip())
    assert tokenizer.decode(row.input_ids) == official
    assert row.input_ids.tolist() != CONVERSATIONS[name]["input_ids"]


def official_noise(key):
    """The recorded draws of each sample of a batch."""
    tensors = parity.tensors("loss")
    return zip(tensors[f"{key}/t"], tensors[f"{key}/u"], strict=True)


def official_rows(key, processor):
    """A batch's rows, noised by the recorded draws, and the collator that made them."""
    batch = BATCHES[key]
    padded = len(batch["samples"]) > 1
    collator = Collator(processor, conversation_mask=batch["use_conversation_mask"], train_on_padding=padded)
    rows = [collator.prepare({"messages": official_messages(name)}) for name in batch["samples"]]
    if padded:
        rows = collator.filled_up(rows)
    assert [int((row.labels != IGNORED).sum()) for row in rows] == batch["answer_length"]
    noise = [Noise(t[None], u[None, : len(row)]) for (t, u), row in zip(official_noise(key), rows, strict=True)]
    return collator, [view for row, drawn in zip(rows, noise, strict=True) for view in collator.add_noise(row, drawn)]


def gradients_match(key, loss, model, report):
    names, parameters = parity.numbers("loss")["param_names"], dict(model.named_parameters())
    found = torch.autograd.grad(loss, [parameters[native_key(name)] for name in names])
    for name, gradient in zip(names, found, strict=True):
        norm = BATCHES[key]["grad_norms"][name]
        off = abs(float(gradient.double().norm()) - norm) / norm
        report.check("collator: gradient norms", f"{key}, {name.rsplit('vision_model.')[-1]}", off, parity.GRADIENT)


@pytest.mark.parametrize("key", BATCHES)
def test_the_official_draws_give_the_official_loss_and_gradients(key, processor, trained, parity_report):
    collator, rows = official_rows(key, processor)
    batch = collator.assemble(rows)
    hidden = [row.nonzero()[:, 0].tolist() for row in batch["labels"] != IGNORED]
    parity_report.same("collator: hidden positions", key, hidden, BATCHES[key]["masked_positions"])
    if len(rows) > 1:
        # There the rest of a short row is zeros in view of everything, which no token can be.
        given = {name: batch.pop(name) for name in ("labels", "loss_weights")}
        embeds, _, _ = trained.model.embed_inputs(**{k: v for k, v in batch.items() if k != "attention_mask"})
        batch = {"inputs_embeds": embeds * batch["attention_mask"][..., None], **given}
    loss = trained(**batch).loss
    off = abs(float(loss.detach()) - BATCHES[key]["loss"]) / BATCHES[key]["loss"]
    parity_report.check("collator: loss", key, off, parity.LOSS)
    gradients_match(key, loss, trained, parity_report)


@pytest.mark.parametrize("key", [key for key, batch in BATCHES.items() if len(batch["samples"]) == 1])
def test_noise_drawn_here_is_that_which_the_forward_pass_draws(key, processor, trained):
    batch = BATCHES[key]
    collator = Collator(processor, conversation_mask=batch["use_conversation_mask"])
    example = {"messages": official_messages(batch["samples"][0])}
    torch.manual_seed(batch["seed"])
    outside = loss_of(trained, collator([example]))
    row = collator.prepare(example)
    clean = {**collator.assemble([row]), "labels": row.labels[None]}
    del clean["loss_weights"]
    torch.manual_seed(batch["seed"])
    inside = loss_of(trained, clean)
    assert outside == inside
    assert outside == pytest.approx(batch["loss"], rel=parity.LOSS)


# --- Losses that can be worked out

OPTIONS = {
    "plain": {},
    "answers only": {"answers_only": True},
    "canvas": {"answer_canvas": 32},
    "canvas and views": {"answer_canvas": 32, "complementary": True, "answers_only": True},
    "padding": {"train_on_padding": True},
    "turns": {"conversation_mask": True},
    "complementary": {"complementary": True},
    "fixed": {"fixed_noise": True},
    "packed": {"packing": True, "max_length": 400},
    "all": {"packing": True, "max_length": 400, "complementary": True, "conversation_mask": True,
            "answers_only": True, "fixed_noise": True},
}  # fmt: skip


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_equal_logits_cost_ln_v_per_unit_of_weight(options, processor, flat):
    batch = Collator(processor, **options)(numbered([SHORT, LONG, TURNS]))
    weight = float(batch["loss_weights"].sum()) / len(batch["input_ids"])
    assert weight > 0
    assert loss_of(flat, batch) == pytest.approx(weight * math.log(126464), rel=1e-5)


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_the_expected_weight_of_a_batch_is_one(options, processor):
    # So that equal logits over V tokens cost ln V on average. Noise is drawn 3000 times on rows that are made once.
    collator = Collator(processor, **options)
    rows = [collator.prepare(sample) for sample in numbered([LONG, LONG, SHORT])]
    rows = collator.filled_up(rows) if collator.train_on_padding else rows
    total = 0.0
    for epoch, (index, row) in itertools.product(range(1000), enumerate(rows)):
        row.number = (epoch, 3 * epoch + index)
        views = collator.add_noise(row, collator.noise_of(row))
        total += sum(float(view.loss_weights.sum()) for view in views) / len(views)
    assert total / 3000 == pytest.approx(1, abs=0.05)


def test_complementary_views_stand_beside_each_other_and_hide_everything_once(processor):
    plain = [Collator(processor).prepare(example) for example in (SHORT, SEEN)]
    batch = Collator(processor, complementary=True)(numbered([SHORT, SEEN]))
    assert len(batch["input_ids"]) == 4
    for number, row in enumerate(plain):
        views = batch["labels"][2 * number : 2 * number + 2, : len(row)]
        assert torch.equal((views != IGNORED).sum(dim=0), (row.labels != IGNORED).long())
        assert torch.equal(views.amax(dim=0), row.labels)
    assert batch["image_tile_counts"].tolist() == [2, 2]


# --- Padding, masks and pictures


def test_short_rows_are_padded_on_the_right_and_padding_is_not_learned(processor):
    collator = Collator(processor)
    batch = collator(numbered([SHORT, SEEN]))
    rows = [collator.prepare(example) for example in (SHORT, SEEN)]
    assert batch["input_ids"].shape == (2, len(rows[1]))
    assert batch["attention_mask"].sum(dim=1).tolist() == [len(row) for row in rows]
    for line, row in enumerate(rows):
        clean = torch.where(batch["labels"][line] != IGNORED, batch["labels"][line], batch["input_ids"][line])
        assert torch.equal(clean[: len(row)], row.input_ids)
        assert (batch["input_ids"][line, len(row) :] == parity.PAD).all()
        assert (batch["labels"][line, len(row) :] == IGNORED).all()
        assert not batch["loss_weights"][line, len(row) :].any()


def test_padding_is_learned_when_asked_for_as_if_pictures_were_single_tokens(processor):
    collator = Collator(processor, train_on_padding=True)
    rows = [collator.prepare(example) for example in (SHORT, SEEN, LONG)]
    filled = collator.filled_up(rows)
    pictures = int((rows[1].input_ids == processor.image_token_id).sum())
    widths = [len(rows[0]), len(rows[1]) - pictures + 1, len(rows[2])]
    assert max(widths) == widths[2]
    assert [len(after) - len(before) for before, after in zip(rows, filled, strict=True)] == [
        max(widths) - width for width in widths
    ]
    for before, after in zip(rows, filled, strict=True):
        assert (after.labels[len(before) :] == parity.PAD).all()
    batch = collator(numbered([SHORT, SEEN, LONG]))
    assert batch["attention_mask"].sum(dim=1).tolist() == [len(row) for row in filled]
    # Padding comes last, and with a conversation mask it sees everything.
    turns = collator.filled_up([collator.prepare(TURNS), rows[2]])[0].turns
    assert turns[-1] == turns.max() == 1


def test_only_answers_are_learned_when_asked_for(processor):
    everything, answers = (Collator(processor, answers_only=only).prepare(SHORT) for only in (False, True))
    start = int((everything.labels == 17).nonzero()[0])  # the first word of the answer
    assert torch.equal(answers.labels[start:], everything.labels[start:])
    assert (answers.labels[:start] == IGNORED).all()
    # The start, three of each message before, and the answer's header with a role of two tokens and two line feeds.
    assert (everything.labels[:start] != IGNORED).sum() == 7 + 6


@pytest.mark.parametrize("canvas", [1, 4, 16])
def test_a_canvas_is_filled_up_with_ends_that_count_little(canvas, processor):
    bare, row = (Collator(processor, answers_only=True, answer_canvas=size).prepare(SHORT) for size in (None, canvas))
    words = int((bare.labels != IGNORED).sum())  # of the answer, with its end
    ends = -words % canvas
    assert len(row) == len(bare) + ends
    assert row.worth.tolist() == pytest.approx([1.0] * len(bare) + [0.1] * ends)
    assert torch.equal(row.input_ids[: len(bare)], bare.input_ids)
    assert torch.equal(row.labels[: len(bare)], bare.labels)
    end = processor.tokenizer.convert_tokens_to_ids("<|eot_id|>")
    assert (row.input_ids[len(bare) :] == end).all()
    assert (row.labels[len(bare) :] == end).all()
    # Everything hidden, at p = 1: a token of the answer weighs ten times an end, and all of them one.
    collator = Collator(processor, answers_only=True, answer_canvas=canvas)
    (noised,) = collator.add_noise(row, Noise(torch.ones(1), torch.zeros(1, len(row))))
    weights = noised.loss_weights[noised.labels != IGNORED]
    assert weights.sum() == pytest.approx(1.0)
    assert weights[:words] == pytest.approx([1 / (words + 0.1 * ends)] * words)
    assert weights[words:] == pytest.approx([0.1 / (words + 0.1 * ends)] * ends)


def test_every_answer_gets_a_canvas_where_all_are_to(processor):
    bare, last, every = (
        Collator(processor, answers_only=True, **options).prepare(TURNS)
        for options in ({}, {"answer_canvas": 16}, {"answer_canvas": 16, "canvas_turns": "all"})
    )

    def runs(row):
        """Where learned tokens begin and end, answer by answer."""
        edges = torch.diff((row.labels != IGNORED).int(), prepend=torch.zeros(1), append=torch.zeros(1))
        return list(zip((edges == 1).nonzero().flatten(), (edges == -1).nonzero().flatten(), strict=True))

    lengths = [int(end - start) for start, end in runs(bare)]
    assert len(lengths) == 2
    assert [int(end - start) for start, end in runs(last)] == [lengths[0], -(-lengths[1] // 16) * 16]
    assert [int(end - start) for start, end in runs(every)] == [-(-length // 16) * 16 for length in lengths]
    assert torch.equal(every.input_ids[every.worth == 1], bare.input_ids)
    assert torch.equal(every.turns[every.worth == 1], bare.turns)
    first = runs(every)[0]
    assert every.turns[first[0] : first[1]].tolist() == [0] * (first[1] - first[0])


@pytest.mark.parametrize("sizes", [(8, 16, 64), (2, 16, 64), (2, 3)], ids=["all hold them", "some do", "none does"])
def test_one_of_the_canvases_that_hold_an_answer_is_drawn_for_it(sizes, processor):
    collator = Collator(processor, answers_only=True, answer_canvas=sizes, canvas_turns="all")
    words = (Collator(processor, answers_only=True).prepare(TURNS).labels != IGNORED).int()
    edges = torch.diff(words, prepend=torch.zeros(1), append=torch.zeros(1)).nonzero().flatten().tolist()
    lengths = [end - start for start, end in zip(edges[::2], edges[1::2], strict=True)]
    assert all(3 < length <= 8 for length in lengths)
    holding = [[size for size in sizes if size >= length] for length in lengths]
    expected = set(itertools.product(*(fit or [-(-n // 3) * 3] for n, fit in zip(lengths, holding, strict=True))))
    found = set()
    for epoch in range(100):
        row, again = (collator.prepare(numbered([TURNS], epoch)[0]) for _ in range(2))
        assert torch.equal(row.input_ids, again.input_ids)
        edges = torch.diff((row.labels != IGNORED).int(), prepend=torch.zeros(1), append=torch.zeros(1)).nonzero()
        found.add(tuple((edges[1::2] - edges[::2]).flatten().tolist()))
    assert found == expected


def test_answers_are_hidden_by_blocks_when_asked_for(processor):
    collator = Collator(processor, answers_only=True, answer_canvas=8, canvas_turns="all", block_noise=8)
    row = collator.prepare(TURNS)
    for epoch in range(20):
        batch = collator(numbered([TURNS], epoch))
        again = collator(numbered([TURNS], epoch))
        assert torch.equal(batch["input_ids"], again["input_ids"])
        hidden = batch["labels"][0] != IGNORED
        assert torch.equal(batch["input_ids"][0] == parity.MASK, hidden)
        assert torch.equal(batch["labels"][0][hidden], row.labels[hidden])
        assert batch["loss_weights"].sum() == pytest.approx(1.0)


def test_one_token_of_a_few_is_hidden_when_asked_for(processor):
    collator = Collator(processor, answers_only=True, sparse_noise=2)
    row = collator.prepare(TURNS)
    learned = row.labels != IGNORED
    seen = set()
    for epoch in range(20):
        batch, again = (collator(numbered([TURNS], epoch)) for _ in range(2))
        assert torch.equal(batch["input_ids"], again["input_ids"])
        hidden = batch["labels"][0] != IGNORED
        assert torch.equal(batch["labels"][0][hidden], row.labels[hidden])
        assert learned.sum() / 2 <= hidden.sum() < learned.sum()
        assert batch["loss_weights"].sum() == pytest.approx(1.0)
        seen.add(tuple(hidden.tolist()))
    assert len(seen) > 10


def test_a_canvas_ends_where_a_sample_has_to(processor):
    length = len(Collator(processor).prepare(SHORT)) + 3
    assert len(Collator(processor, answer_canvas=64, max_length=length).prepare(SHORT)) == length


def test_only_an_answer_that_ends_gets_a_canvas(processor):
    asked = {**SHORT, "messages": SHORT["messages"][:-1]}
    cut = len(Collator(processor).prepare(SHORT)) - 1
    for row in (
        Collator(processor, answer_canvas=64).prepare(asked),
        Collator(processor, answer_canvas=64, max_length=cut).prepare(SHORT),
    ):
        assert (row.worth == 1).all()


def test_placeholders_and_unlabelled_tokens_are_never_hidden(processor):
    collator = Collator(processor)
    row = collator.prepare(SEEN)
    for epoch in range(50):
        batch = collator(numbered([SEEN], epoch))
        hidden = batch["input_ids"][0] != row.input_ids
        assert torch.equal(hidden, batch["labels"][0] != IGNORED)
        assert (row.labels[hidden] != IGNORED).all()
        assert (batch["input_ids"][0][hidden] == parity.MASK).all()


def test_turns_are_given_when_asked_for(processor):
    assert "conversation_ids" not in Collator(processor)(numbered([TURNS]))
    batch = Collator(processor, conversation_mask=True)(numbered([TURNS, SHORT]))
    assert batch["conversation_ids"].unique().tolist() == [0, 1]
    assert torch.equal(batch["conversation_ids"][0], Collator(processor).prepare(TURNS).turns)


def test_the_separator_after_a_picture_is_a_line_feed_unless_another_is_given(processor):
    given = {separator: Collator(processor, image_separator=separator).prepare(SEEN) for separator in ("\n", "")}
    last = {key: int((row.input_ids == processor.image_token_id).nonzero()[-1]) for key, row in given.items()}
    assert int(given["\n"].input_ids[last["\n"] + 1]) == 198
    assert torch.equal(given[""].input_ids[last[""] + 1 :], given["\n"].input_ids[last["\n"] + 2 :])


# --- Packing


@pytest.mark.parametrize("options", [{}, {"conversation_mask": True}, {"complementary": True}], ids=str)
def test_packed_samples_cost_what_they_cost_alone(options, processor, model):
    examples, views = numbered([SHORT, TURNS, SEEN]), 2 if options.get("complementary") else 1
    alone = [loss_of(model, Collator(processor, **options)([example])) for example in examples]
    packed = Collator(processor, packing=True, max_length=4096, **options)(examples)
    assert len(packed["input_ids"]) == 1
    lengths = [len(Collator(processor).prepare(example)) for example in examples for _ in range(views)]
    assert packed["position_ids"][0].tolist() == [place for length in lengths for place in range(length)]
    assert loss_of(model, packed) == pytest.approx(sum(alone) / 3, rel=1e-5)
    padded = Collator(processor, **options)(examples)
    assert loss_of(model, padded) == pytest.approx(sum(alone) / 3, rel=1e-5)


def test_packing_into_several_rows_keeps_pictures_with_their_samples(processor, model):
    other = talk("Which one?", "That.", picture="a2_portrait.jpg")
    examples = numbered([SEEN, SHORT, other, TURNS])
    alone = [loss_of(model, Collator(processor)([example])) for example in examples]
    packed = Collator(processor, packing=True, max_length=3100)(examples)
    assert len(packed["input_ids"]) == 2
    # The portrait is longer and comes first.
    assert packed["image_sizes"].tolist() == [[450, 300], [29, 41]]
    assert loss_of(model, packed) == pytest.approx(sum(alone) / 4, rel=1e-5)


def test_packed_samples_do_not_see_each_other(processor, model):
    # The same sample beside two others has the same hidden states.
    collator = Collator(processor, packing=True, max_length=4096)
    states = []
    for other in (SHORT, talk("Quite another question?", "2, 3 and 6.")):
        batch = collator(numbered([LONG, other]))
        batch = {name: tensor for name, tensor in batch.items() if name not in ("labels", "loss_weights")}
        with torch.no_grad():
            states.append(model.model(**batch).last_hidden_state[0, : len(collator.prepare(LONG))])
    torch.testing.assert_close(states[0], states[1])


# --- Samples that are too long


def test_a_long_sample_is_cut_at_the_end(processor):
    whole = Collator(processor).prepare(LONG)
    row = Collator(processor, max_length=len(whole) - 10).prepare(LONG)
    assert torch.equal(row.input_ids, whole.input_ids[:-10])
    assert torch.equal(row.labels, whole.labels[:-10])
    assert len(Collator(processor, max_length=len(whole)).prepare(LONG)) == len(whole)


def test_no_cut_goes_through_a_picture(processor):
    whole = Collator(processor).prepare(SEEN)
    pictures = (whole.input_ids == processor.image_token_id).nonzero()[:, 0]
    first, last, count = int(pictures[0]), int(pictures[-1]), len(pictures)
    message = (
        f"train.jsonl:7 has {len(whole)} tokens, more than max_length={last}, and the end cannot be cut: only "
        f"{count - 1} of its {count} picture tokens would be left; raise max_length, shorten it, or pass "
        'too_long="drop"'
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        Collator(processor, max_length=last)([{**SEEN, "source": "train.jsonl:7"}])
    with pytest.raises(ValueError, match=f"only 0 of its {count} picture tokens would be left"):
        Collator(processor, max_length=first)([SEEN])


def test_an_answer_must_begin_before_the_cut(processor):
    row = Collator(processor).prepare(LONG)
    answer = int((row.labels == 10450).nonzero()[0]) + 4  # behind its role, the header's end and two line feeds
    assert len(Collator(processor, max_length=answer + 1).prepare(LONG)) == answer + 1
    with pytest.raises(ValueError, match=f"sample 1 of the batch has .* its first answer begins at token {answer};"):
        Collator(processor, max_length=answer)([SHORT, LONG])


def test_samples_are_dropped_when_asked_for(processor, model):
    collator = Collator(processor, max_length=200, too_long="drop")
    with pytest.warns(UserWarning, match="example 1 is left out: has 13.. tokens, more than max_length=200, and"):
        batch = collator(numbered([SHORT, SEEN]))
    assert same(batch, collator(numbered([SHORT])))
    for options in ({}, {"packing": True, "fixed_noise": True, "complementary": True}):
        with pytest.warns(UserWarning, match="example 0 is left out"):
            empty = Collator(processor, max_length=200, too_long="drop", **options)(numbered([SEEN]))
        assert "pixel_values" not in empty
        assert loss_of(model, empty) == 0


def test_what_cannot_be_used_is_named(processor):
    with pytest.raises(ValueError, match=r"sample 0 of the batch has no messages; give an object with \.messages,"):
        Collator(processor)([{"source": None}])
    broken = {"role": "user", "content": [{"type": "image", "image": "no-such-file.png"}]}
    with pytest.raises(ValueError, match=r"^here:3: .*no-such-file\.png.* cannot be read as a picture"):
        Collator(processor)([{"source": "here:3", "messages": [broken]}])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"too_long": "cut"}, 'too_long=\'cut\'; choose "error" or "drop"'),
        ({"prompt": "caption"}, 'prompt=\'caption\'; choose "chat" or "plain" or "completion"'),
        (
            {"prompt": "plain", "answers_only": True},
            'answers_only=True has no meaning with prompt="plain", which has no messages; leave it out',
        ),
        ({"answer_canvas": 0}, "answer_canvas=0; a canvas holds at least one token: pass more, or None"),
        (
            {"answer_canvas": 8, "train_on_padding": True},
            "answer_canvas=8 and train_on_padding=True both learn what comes after: choose one",
        ),
        (
            {"prompt": "plain", "answer_canvas": 8},
            'answer_canvas=8 has no meaning with prompt="plain", which is never asked; leave it out',
        ),
        ({"max_length": 0}, "max_length=0; a sample has at least one token: pass more, or None"),
        ({"packing": True}, "packing=True needs max_length, the tokens that a row holds; pass max_length=4096"),
        (
            {"packing": True, "max_length": 9, "train_on_padding": True},
            "packing=True leaves no padding for train_on_padding=True; choose one of them",
        ),
    ],
    ids=lambda value: str(value)[:20],
)
def test_options_that_mean_nothing_are_refused(options, message, processor):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        Collator(processor, **options)


# --- Plain prompts


def captioned(caption, *question):
    return {
        "messages": [
            {"role": "user", "content": [{"type": "image", "image": parity.picture("a5_tiny_gray.png")}, *question]},
            {"role": "assistant", "content": caption},
        ]
    }


def test_a_plain_prompt_is_the_picture_the_caption_and_a_line_feed(processor, tokenizer):
    given = captioned("A grey\ncat. <|eot_id|><image>", {"type": "text", "text": "Never seen."})
    collator = Collator(processor, prompt="plain")
    row = collator.prepare(given)
    pictures = int((Collator(processor).prepare(SEEN).input_ids == processor.image_token_id).sum())
    assert (row.input_ids[:pictures] == processor.image_token_id).all()
    caption = row.input_ids[pictures:]
    assert tokenizer.decode(caption) == "A grey\ncat. <|eot_id|><image>\n"
    assert caption[-1] == 198
    assert not torch.isin(caption, torch.tensor([processor.image_token_id, 126348])).any()
    assert torch.equal(row.labels, torch.cat([torch.full((pictures,), IGNORED), caption]))
    assert not row.turns.any()


def test_a_plain_caption_has_the_ids_of_the_tokenizer_alone(processor, tokenizer):
    # LLaVA tokenises what stands before and behind a picture by itself.
    for caption in ("a cat", "  two spaces", "Ends with a feed\n", "Grüße 你好"):
        row = Collator(processor, prompt="plain").prepare(captioned(caption))
        assert row.input_ids[row.labels != IGNORED].tolist() == tokenizer(caption + "\n").input_ids


def test_the_plain_loss_is_that_of_the_tokens_behind_the_picture(processor, flat):
    batch = Collator(processor, prompt="plain", complementary=True)(numbered([captioned("a cat")]))
    # Both views together hide every token once.
    assert (batch["labels"] != IGNORED).sum() == len(processor.tokenizer("a cat\n").input_ids)
    weight = float(batch["loss_weights"].sum()) / 2
    assert loss_of(flat, batch) == pytest.approx(weight * math.log(126464), rel=1e-5)


def test_a_plain_prompt_can_be_cut_behind_the_first_token_of_its_caption(processor):
    whole = Collator(processor, prompt="plain").prepare(captioned("a cat on a mat"))
    first = int((whole.labels != IGNORED).nonzero()[0])
    row = Collator(processor, prompt="plain", max_length=first + 1).prepare(captioned("a cat on a mat"))
    assert torch.equal(row.input_ids, whole.input_ids[: first + 1])
    with pytest.raises(ValueError, match=f"cannot be cut: its first answer begins at token {first};"):
        Collator(processor, prompt="plain", max_length=first).prepare(captioned("a cat on a mat"))


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        (
            TURNS["messages"],
            'the messages are user, assistant, user, assistant, and prompt="plain" takes one question',
        ),
        (SHORT["messages"], 'the question has no picture, and prompt="plain" is for pictures with captions'),
        (
            [SEEN["messages"][0], {"role": "assistant", "content": SEEN["messages"][0]["content"]}],
            'the answer has a picture, and prompt="plain" begins with them',
        ),
    ],
    ids=["turns", "no picture", "picture in the answer"],
)
def test_what_has_no_plain_prompt_is_named(messages, message, processor):
    with pytest.raises(ValueError, match=f"^here:3: {re.escape(message)}"):
        Collator(processor, prompt="plain")([{"source": "here:3", "messages": messages}])


def test_a_system_message_is_no_turn_of_a_plain_prompt(processor):
    given = captioned("a cat")
    system = {"role": "system", "content": "Be brief."}
    collator = Collator(processor, prompt="plain")
    assert torch.equal(
        collator.prepare({"messages": [system, *given["messages"]]}).input_ids, collator.prepare(given).input_ids
    )


# --- Completions


def asked(*turns, media=True):
    picture = [{"type": "image", "image": parity.picture("a5_tiny_gray.png")}] if media else []
    messages = [
        {"role": role, "content": [{"type": "text", "text": text}]}
        for turn in turns
        for role, text in zip(("user", "assistant"), turn, strict=True)
    ]
    messages[0]["content"] += picture  # behind the words, to show that it goes to the front
    return {"messages": messages}


WORDS = ("red cat", "two")


def test_a_completion_is_the_picture_and_lines_of_questions_and_answers(processor, tokenizer):
    row = Collator(processor, prompt="completion").prepare(asked(("Who? ", "A grey\ncat"), ("Really?", "<|eot_id|>")))
    shown = row.input_ids == processor.image_token_id
    pictures = int(shown.sum())
    assert shown[:pictures].all()
    assert tokenizer.decode(row.input_ids[pictures:]) == "Who?\nA grey\ncat\nReally?\n<|eot_id|>\n"
    learned = (row.labels != IGNORED).int()
    edges = torch.diff(learned, prepend=torch.zeros(1), append=torch.zeros(1)).nonzero().flatten().tolist()
    answers = [tokenizer.decode(row.labels[start:end]) for start, end in zip(edges[::2], edges[1::2], strict=True)]
    assert answers == ["A grey\ncat\n", "<|eot_id|>\n"]
    assert torch.equal(row.labels[learned == 1], row.input_ids[learned == 1])


def test_answers_are_the_same_tokens_in_completions_and_in_chats(processor, tokenizer):
    sample, words = asked(("Who?", "red cat"), ("How many?", "two")), [len(tokenizer(w).input_ids) for w in WORDS]
    for prompt in ("completion", "chat"):
        row = Collator(processor, prompt=prompt, answers_only=prompt == "chat").prepare(sample)
        learned = row.input_ids[row.labels != IGNORED].tolist()
        assert learned[: words[0]] == tokenizer(WORDS[0]).input_ids
        assert learned[words[0] + 1 : -1] == tokenizer(WORDS[1]).input_ids


def test_a_completion_without_a_picture_or_a_question_learns_the_answer(processor, tokenizer):
    row = Collator(processor, prompt="completion").prepare(asked(("", "a cat on a mat"), media=False))
    assert row.input_ids.tolist() == row.labels.tolist() == tokenizer("a cat on a mat\n").input_ids


def test_a_completion_can_be_cut_within_its_answers(processor):
    sample = asked(("Who?", "a cat on a mat"), ("What?", "a dog"))
    whole = Collator(processor, prompt="completion").prepare(sample)
    first = int((whole.labels != IGNORED).nonzero()[0])
    row = Collator(processor, prompt="completion", max_length=first + 2).prepare(sample)
    assert torch.equal(row.input_ids, whole.input_ids[: first + 2])
    assert torch.equal(row.labels, whole.labels[: first + 2])
    with pytest.raises(ValueError, match=f"cannot be cut: its first answer begins at token {first};"):
        Collator(processor, prompt="completion", max_length=first).prepare(sample)


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        (SHORT["messages"][:1], 'the messages are user, and prompt="completion" takes questions and answers in turn'),
        (
            asked(("Who?", "a cat"), media=False)["messages"] + SEEN["messages"],
            'the later question has a picture, and prompt="completion" begins with them',
        ),
        (
            [SEEN["messages"][0], {"role": "assistant", "content": SEEN["messages"][0]["content"]}],
            'the answer has a picture, and prompt="completion" begins with them',
        ),
    ],
    ids=["no answer", "later picture", "picture in the answer"],
)
def test_what_has_no_completion_is_named(messages, message, processor):
    with pytest.raises(ValueError, match=f"^here:3: {re.escape(message)}"):
        Collator(processor, prompt="completion")([{"source": "here:3", "messages": messages}])


def test_answers_of_a_completion_are_filled_up_with_line_feeds(processor, tokenizer):
    sample = asked(("Who?", "a cat"), ("What?", "a dog on a mat"))
    bare, last, every = (
        Collator(processor, prompt="completion", **options).prepare(sample)
        for options in ({}, {"answer_canvas": 8}, {"answer_canvas": 8, "canvas_turns": "all"})
    )
    feeds, short, long = 198, *(len(tokenizer(text).input_ids) for text in ("a cat\n", "a dog on a mat\n"))
    assert last.input_ids.tolist() == [*bare.input_ids.tolist(), *[feeds] * (-long % 8)]
    end = len(bare) - long - len(tokenizer("What?\n").input_ids)  # of the first answer
    before, after = bare.input_ids[:end].tolist(), last.input_ids[end:].tolist()
    assert every.input_ids.tolist() == [*before, *[feeds] * (-short % 8), *after]
    assert (every.labels[every.worth < 1] == feeds).all()
    assert int((every.worth < 1).sum()) == -short % 8 + -long % 8
    assert int((every.labels != IGNORED).sum()) == 16


def test_every_question_of_a_completion_begins_a_turn(processor, tokenizer):
    sample = asked(("Who?", "a cat"), ("What?", "a dog on a mat"))
    row = Collator(processor, prompt="completion", conversation_mask=True).prepare(sample)
    second = len(tokenizer("What?\n").input_ids) + len(tokenizer("a dog on a mat\n").input_ids)
    assert row.turns.tolist() == [0] * (len(row) - second) + [1] * second


MIX = {"prompt": "completion", "chat_share": 0.3, "answers_only": True, "answer_canvas": 8, "canvas_turns": "all"}


def forms(processor, samples, **options):
    """Each sample's row, and whether it is a chat."""
    collator = Collator(processor, **MIX, **options)
    rows = [collator.prepare(sample) for sample in samples]
    return [(row, int(row.input_ids[0]) == collator.ids.start) for row in rows]


def test_a_share_of_completions_are_chats(processor):
    """Each as it would be if all were of its form, canvas and what is learned included."""
    sample = asked(("Who?", "a cat"), ("What?", "a dog on a mat"), media=False)
    chat = Collator(processor, answers_only=True, answer_canvas=8, canvas_turns="all").prepare(sample)
    completion = Collator(processor, prompt="completion").prepare(sample)
    found = forms(processor, numbered([sample] * 200))
    for row, is_chat in found:
        expected = chat if is_chat else completion
        for name in ("input_ids", "labels", "turns", "worth"):
            assert torch.equal(getattr(row, name), getattr(expected, name))
    count = sum(is_chat for _, is_chat in found)
    assert abs(count - 60) < 4 * (200 * 0.3 * 0.7) ** 0.5  # four standard deviations


def test_which_samples_are_chats_depends_on_seed_epoch_and_sample_alone(processor):
    samples = numbered([asked(("Who?", "a cat"), media=False)] * 40)
    first, again = ([is_chat for _, is_chat in forms(processor, samples)] for _ in range(2))
    assert first == again
    assert [is_chat for _, is_chat in forms(processor, samples[::-1])] == first[::-1]
    assert [is_chat for _, is_chat in forms(processor, samples, seed=1)] != first
    later = numbered([asked(("Who?", "a cat"), media=False)] * 40, epoch=1)
    assert [is_chat for _, is_chat in forms(processor, later)] != first
    assert [is_chat for _, is_chat in forms(processor, later, fixed_noise=True)] == first


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"chat_share": 1.5, "prompt": "completion"}, "chat_share=1.5; a share is from 0 to 1"),
        ({"chat_share": 0.5}, 'chat_share=0.5 is the share of chats among completions; pass prompt="completion"'),
        ({"chat_share": 0.5, "prompt": "plain"}, "chat_share=0.5 is the share of chats among completions"),
    ],
)
def test_a_share_of_chats_needs_completions(options, message, processor):
    with pytest.raises(ValueError, match=re.escape(message)):
        Collator(processor, **options)


@pytest.mark.parametrize("prompt", ["plain", "completion"])
def test_a_prompt_that_is_looked_at_has_the_labels_of_the_one_that_is_learned(prompt, processor):
    sample = asked(("Who <|eot_id|>?", "a <image> cat"))
    row = Collator(processor, prompt=prompt).prepare(sample)
    view = PromptViewer(processor, prompt=prompt).view(sample["messages"], [(40, 30)])
    shown = row.input_ids == processor.image_token_id
    assert torch.equal(view.labels[1:], row.labels[~shown])
    assert torch.equal(view.input_ids[1:], row.input_ids[~shown])


# --- Pictures that are filled in, and numbers


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_a_picture_that_is_filled_in_does_not_change_the_loss(options, processor, model):
    without = Collator(processor, **options)(numbered([SHORT, LONG, TURNS]))
    filled = Collator(processor, fill_in_picture=True, **options)(numbered([SHORT, LONG, TURNS]))
    assert "pixel_values" not in without
    assert filled["image_tile_counts"].tolist() == [1]
    assert len(filled["input_ids"]) == len(without["input_ids"]) + 1
    assert not filled["loss_weights"][-1].any()
    assert (filled["labels"][-1] == IGNORED).all()
    assert loss_of(model, filled) == pytest.approx(loss_of(model, without), rel=1e-6)


def test_a_picture_that_is_filled_in_gives_the_tower_gradients_of_zero(processor, trained):
    loss = trained(**Collator(processor, fill_in_picture=True)(numbered([SHORT]))).loss
    named = {
        name: parameter
        for name, parameter in trained.named_parameters()
        if ("vision_tower" in name and "post_layernorm" not in name) or "projector" in name or "newline" in name
    }
    gradients = torch.autograd.grad(loss, list(named.values()))  # an error if one was not used
    assert len(named) > 20
    assert not any(gradient.any() for gradient in gradients)


def test_no_picture_is_filled_in_beside_others(processor):
    for sample in (SEEN, {"messages": [{"role": "user", "content": [{"type": "video", "video": parity.frames()}]},
                                       {"role": "assistant", "content": "A film."}]}):  # fmt: skip
        plain, asked = (Collator(processor, fill_in_picture=f)(numbered([SHORT, sample])) for f in (False, True))
        assert same(plain, asked)


def test_a_batch_of_which_nothing_is_left_gets_its_picture_too(processor, model):
    collator = Collator(processor, max_length=200, too_long="drop", fill_in_picture=True, sample_numbers=True)
    with pytest.warns(UserWarning, match="example 0 is left out"):
        batch = collator(numbered([SEEN]))
    assert batch.pop("sample_numbers").tolist() == [-1]
    assert len(batch["pixel_values"]) == 1
    assert loss_of(model, batch) == 0


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_a_batch_says_which_samples_it_holds_when_asked(options, processor):
    samples = [numbered([LONG, SHORT, TURNS])[number] for number in (2, 0, 1)]
    plain = Collator(processor, **options)(samples)
    asked = Collator(processor, sample_numbers=True, fill_in_picture=False, **options)(samples)
    numbers = asked.pop("sample_numbers")
    assert numbers.dtype == torch.long
    assert numbers.tolist() == [2, 0, 1]
    assert same(plain, asked)


def test_samples_without_a_number_or_left_out_are_told_apart(processor):
    collator = Collator(processor, max_length=200, too_long="drop", sample_numbers=True, complementary=True)
    with pytest.warns(UserWarning, match="example 1 is left out"):
        batch = collator([numbered([SHORT, SEEN])[1], SHORT, numbered([SHORT, SHORT])[1]])
    assert batch["sample_numbers"].tolist() == [-1, 1]


# --- The same batches however they are made

EXAMPLES = [talk(f"Question {number}? " * (1 + number % 3), f"Answer {number}. " * 3) for number in range(12)]


def batches(processor, epoch=0, workers=0, skip=0, **options):
    data = Numbered(EXAMPLES)
    data.set_epoch(epoch)
    order = TrainingBatches(data, 4, 2, seed=3, lengths=[len(str(example)) for example in EXAMPLES])
    loader = DataLoader(
        data, batch_sampler=list(order)[skip:], num_workers=workers, collate_fn=Collator(processor, **options)
    )
    return list(loader)


@pytest.mark.parametrize("options", [{}, {"complementary": True, "packing": True, "max_length": 300}], ids=str)
def test_batches_do_not_depend_on_the_number_of_workers(options, processor):
    alone = batches(processor, **options)
    assert len(alone) == 6
    for workers in (1, 2):
        assert all(itertools.starmap(same, zip(alone, batches(processor, workers=workers, **options), strict=True)))


def test_later_batches_are_the_same_without_the_earlier_ones(processor):
    torch.manual_seed(0)
    whole = batches(processor)
    torch.manual_seed(1)
    assert all(itertools.starmap(same, zip(whole[4:], batches(processor, skip=4), strict=True)))


def test_every_epoch_and_seed_has_noise_of_its_own_but_evaluation_has_not(processor):
    def made(epoch, **options):
        return Collator(processor, **options)(numbered(EXAMPLES, epoch))

    assert same(made(0), made(0))
    assert not torch.equal(made(0)["input_ids"], made(1)["input_ids"])
    assert not torch.equal(made(0)["input_ids"], made(0, seed=1)["input_ids"])
    assert same(made(0, fixed_noise=True), made(1, fixed_noise=True))


def test_noise_does_not_depend_on_the_batch_a_sample_stands_in(processor):
    collator = Collator(processor)
    samples = numbered(EXAMPLES)
    together = collator(samples)
    for line in (0, 7, 11):
        alone = collator([samples[line]])
        length = alone["input_ids"].shape[1]
        for name in ("input_ids", "labels", "loss_weights"):
            assert torch.equal(together[name][line, :length], alone[name][0])


def test_examples_without_a_number_have_noise_of_the_global_generator(processor):
    collator = Collator(processor)
    torch.manual_seed(5)
    first, second = collator([SHORT]), collator([SHORT])
    torch.manual_seed(5)
    assert same(collator([SHORT]), first)
    assert not torch.equal(first["input_ids"], second["input_ids"])
    with pytest.raises(
        ValueError, match="sample 0 of the batch has no number, which fixed_noise=True draws its noise"
    ):
        Collator(processor, fixed_noise=True)([SHORT])
