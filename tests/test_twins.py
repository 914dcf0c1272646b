"""The twins: one sees everything and the other what stands before, and both learn the same tokens."""

import copy
import math
from dataclasses import replace
from itertools import islice

import pytest
import torch

from transformers_lladav.collation import Collator
from transformers_lladav.labels import conversation_ids
from transformers_lladav.noise import Noise
from transformers_lladav.rows import Row
from transformers_lladav.twins import (
    KeptFeatures,
    Lesson,
    causal_mask,
    fit,
    next_token_logits,
    next_token_row,
    rows_in_order,
    twin_batch,
    unpadded_causal_mask,
    without_later_turns,
    write_greedily,
)

IGNORED = -100
TALKS = (
    (("Name three primes.", "2, 3 and 5."),),
    (("Hi", "Hello."), ("And then?", "Good bye, my dear.")),
    (("Tell me about a star.", "It is round."),),
)


def messages(turns):
    return [
        {"role": role, "content": text}
        for turn in turns
        for role, text in zip(("user", "assistant"), turn, strict=True)
    ]


@pytest.fixture(scope="module")
def collator(processor):
    return Collator(processor, packing=True, max_length=400, answers_only=True, answer_canvas=8)


@pytest.fixture(scope="module")
def rows(collator):
    made = [collator.prepare({"messages": messages(turns)}) for turns in TALKS]
    return [replace(row, number=(0, number)) for number, row in enumerate(made)]


@pytest.fixture
def pupil(model):
    return copy.deepcopy(model).requires_grad_(True)


def test_a_causal_mask_takes_the_later_positions_of_a_sample_away():
    samples = torch.tensor([0, 0, 0, 1, 1])
    seen = causal_mask((samples[:, None] == samples)[None, None])
    assert seen[0, 0].int().tolist() == [
        [1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [1, 1, 1, 0, 0],
        [0, 0, 0, 1, 0],
        [0, 0, 0, 1, 1],
    ]


@pytest.mark.parametrize("mask", [torch.ones(2, 5, dtype=torch.bool), torch.ones(1, 1, 3, 3)])
def test_what_is_no_mask_of_queries_times_keys_is_refused(mask):
    with pytest.raises(ValueError, match=r"not a boolean one of queries times keys; make the batch with Collator\(pa"):
        causal_mask(mask)


def hidden_states(model, batch):
    given = {name: batch[name] for name in ("input_ids", "attention_mask", "position_ids")}
    return model.model(**given).last_hidden_state


def test_no_position_of_the_autoregressive_twin_sees_a_later_one(model, collator, rows):
    batch = twin_batch(collator, rows[:2], "autoregressive")
    assert batch["input_ids"].shape == (1, len(rows[0]) + len(rows[1]))
    place, second = len(rows[0]) - 4, slice(len(rows[0]), None)
    changed = {**batch, "input_ids": batch["input_ids"].clone()}
    changed["input_ids"][0, place] = 5
    before, after = hidden_states(model, batch)[0], hidden_states(model, changed)[0]
    assert torch.equal(before[:place], after[:place])
    assert not torch.equal(before[place], after[place])
    assert torch.equal(before[second], after[second])
    # With nothing taken from the mask, earlier positions see the change.
    everything = collator.assemble([next_token_row(row) for row in rows[:2]])["attention_mask"]
    before, after = (hidden_states(model, {**given, "attention_mask": everything})[0] for given in (batch, changed))
    assert not torch.equal(before[place - 1], after[place - 1])


def test_both_twins_learn_the_same_tokens_of_a_sample(collator, rows):
    for row in rows:
        everything = Noise(torch.ones(1), torch.zeros(1, len(row)))
        (filled_in,) = collator.add_noise(row, everything)
        following = next_token_row(row)
        assert torch.equal(filled_in.labels, row.labels)
        assert torch.equal(following.labels[:-1], filled_in.labels[1:])
        assert following.labels[-1] == filled_in.labels[0] == IGNORED
        torch.testing.assert_close(following.loss_weights[:-1], filled_in.loss_weights[1:])
        assert torch.equal(following.input_ids, row.input_ids)
        assert float(following.loss_weights.sum()) == pytest.approx(1)


def test_weights_are_in_the_proportions_of_worth():
    ids = torch.tensor([5, 6, 7, 8, 8])
    row = Row(ids, torch.tensor([IGNORED, IGNORED, 7, 8, 8]), torch.zeros(5), torch.zeros(5), {}, "", None,
              torch.tensor([1, 1, 1, 1, 0.5]))  # fmt: skip
    following = next_token_row(row)
    assert following.labels.tolist() == [IGNORED, 7, 8, 8, IGNORED]
    assert following.loss_weights.tolist() == pytest.approx([0, 0.4, 0.4, 0.2, 0])


def test_of_a_sample_without_answers_nothing_is_learned():
    ids = torch.tensor([5, 6])
    ignored = torch.full((2,), IGNORED)
    row = next_token_row(Row(ids, ignored, torch.zeros(2), torch.zeros(2), {}, "", None, torch.ones(2)))
    assert row.loss_weights.tolist() == [0, 0]


def test_equally_likely_tokens_have_the_loss_of_their_number(pupil, collator, rows):
    torch.nn.init.zeros_(pupil.lm_head.weight)
    loss = pupil(**twin_batch(collator, rows, "autoregressive")).loss.item()
    assert loss == pytest.approx(math.log(pupil.config.text_config.vocab_size))


def test_the_loss_is_the_mean_over_samples_of_what_comes_next(model, collator, rows):
    losses = []
    for row in rows:
        length = len(row)
        seen = torch.ones(length, length).tril().bool()[None, None]
        logits = model(input_ids=row.input_ids[None], attention_mask=seen).logits[0]
        places = (row.labels != IGNORED).nonzero()[:, 0]
        chosen = logits[places - 1].log_softmax(dim=1).gather(1, row.labels[places, None])[:, 0]
        losses.append(-(chosen * row.worth[places]).sum() / row.worth[places].sum())
    loss = model(**twin_batch(collator, rows, "autoregressive")).loss
    torch.testing.assert_close(loss, torch.stack(losses).mean())


def test_the_diffusion_twin_gets_what_the_collator_makes(collator, rows):
    batch = twin_batch(collator, rows, "diffusion")
    views = [view for row in rows for view in collator.add_noise(row, collator.noise_of(row))]
    assert all(torch.equal(batch[name], tensor) for name, tensor in collator.assemble(views).items())
    assert torch.equal(batch["attention_mask"], batch["attention_mask"].transpose(2, 3))


# Order and training


def test_every_round_has_each_sample_once_and_its_own_order(rows):
    def numbers(seed):
        return [[row.number for row in batch] for batch in islice(rows_in_order(rows, 1, seed), 30)]

    found = [number for (number,) in numbers(0)]
    for epoch in range(10):
        assert sorted(found[3 * epoch : 3 * epoch + 3]) == [(epoch, 0), (epoch, 1), (epoch, 2)]
    assert len({tuple(number for _, number in found[start : start + 3]) for start in range(0, 30, 3)}) > 1
    assert numbers(0) == numbers(0) != numbers(1)


def test_only_the_named_parts_are_trained(pupil, collator, rows):
    before = {name: weight.clone() for name, weight in pupil.state_dict().items()}
    fit(pupil, collator, rows, "autoregressive", Lesson(2, 2, 0.01, trains=("head",), warmup=0))
    changed = {name for name, weight in pupil.state_dict().items() if not torch.equal(weight, before[name])}
    assert changed == {"lm_head.weight"}


def test_training_again_gives_the_same_and_tells_of_every_step(model, collator, rows):
    told = []
    weights = []
    for _ in range(2):
        pupil = copy.deepcopy(model)
        losses = fit(pupil, collator, rows, "diffusion", Lesson(3, 2, 0.01), lambda *given: told.append(given))
        weights.append(pupil.state_dict())
    assert told[:3] == told[3:] == list(enumerate(losses, start=1))
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_a_loss_that_is_no_number_stops_the_training(pupil, collator, rows):
    torch.nn.init.constant_(pupil.lm_head.weight, torch.nan)
    with pytest.raises(ValueError, match=r"the loss is nan at step 1; lower learning_rate=0.01"):
        fit(pupil, collator, rows, "autoregressive", Lesson(3, 2, 0.01))


# Answers


def likeliest(model, prompt, tokens):
    """The likeliest token after the prompt and after each of the tokens but the last, by one causal pass."""
    ids = torch.tensor([[*prompt, *tokens[:-1]]])
    seen = torch.ones(ids.shape[1], ids.shape[1]).tril().bool()[None, None]
    logits = model(input_ids=ids, attention_mask=seen).logits[0, len(prompt) - 1 :, : model.config.output_vocab_size]
    logits[:, [*model.config.suppressed_token_ids, model.config.mask_token_id]] = -torch.inf
    return logits.argmax(dim=1).tolist()


@pytest.fixture
def writer(tiny_model):
    # The mask is among what the head could write, to see that it does not.
    return tiny_model(mask_token_id=79)


def test_every_token_is_the_likeliest_after_those_before(writer):
    prompt = [5, 6, 7, 8]
    writer.generation_config.eos_token_id = None
    (tokens,) = write_greedily(writer, torch.tensor([prompt]), max_new_tokens=12)
    assert len(tokens) == 12
    assert tokens == likeliest(writer, prompt, tokens)


def test_an_answer_ends_with_its_end(writer):
    prompt = torch.tensor([[5, 6, 7, 8]])
    writer.generation_config.eos_token_id = None
    (tokens,) = write_greedily(writer, prompt, max_new_tokens=12)
    writer.generation_config.eos_token_id = tokens[4]
    (ended,) = write_greedily(writer, prompt, max_new_tokens=12)
    assert ended == tokens[: tokens.index(tokens[4]) + 1]


def test_control_tokens_and_masks_are_never_written(writer):
    writer.generation_config.eos_token_id = None
    prompt = torch.tensor([[5, 6, 7, 8]])
    for _ in range(4):
        (tokens,) = write_greedily(writer, prompt, max_new_tokens=1)
        writer.config.suppressed_token_ids = [*writer.config.suppressed_token_ids, *tokens]
        writer.config.mask_token_id = tokens[0]
        (others,) = write_greedily(writer, prompt, max_new_tokens=1)
        assert others != tokens


@pytest.mark.parametrize("side", ["left", "right"])
def test_an_answer_is_the_same_in_a_batch(writer, side):
    prompts = [[5, 6, 7, 8], [9, 10], [20, 21, 22, 23, 24, 25]]
    writer.generation_config.eos_token_id = None
    free = write_greedily(writer, torch.tensor([prompts[0]]), max_new_tokens=9)
    writer.generation_config.eos_token_id = free[0][3]  # so that the samples end at different times
    alone = [write_greedily(writer, torch.tensor([prompt]), max_new_tokens=9)[0] for prompt in prompts]
    padded, mask = torch.full((3, 6), 3), torch.zeros(3, 6, dtype=torch.long)
    for row, prompt in enumerate(prompts):
        columns = slice(6 - len(prompt), 6) if side == "left" else slice(0, len(prompt))
        padded[row, columns], mask[row, columns] = torch.tensor(prompt), 1
    assert write_greedily(writer, padded, mask, max_new_tokens=9) == alone
    assert len({len(answer) for answer in alone}) > 1


def test_padding_is_seen_by_itself_alone():
    seen = unpadded_causal_mask(torch.tensor([[0, 1, 1], [1, 0, 1]]))
    assert seen[:, 0].int().tolist() == [
        [[1, 0, 0], [0, 1, 0], [0, 1, 1]],
        [[1, 0, 0], [1, 1, 0], [1, 0, 1]],
    ]


@pytest.mark.parametrize("padded", [[0, 0, 1, 1, 1, 1], [1, 1, 0, 0, 1, 1], [1, 1, 1, 1, 0, 0]])
def test_padding_changes_nothing_wherever_it_stands(tiny_model, padded):
    model = tiny_model(text_config={"initializer_range": 0.5})  # so that positions matter
    mask, tokens = torch.tensor([padded]), torch.tensor([[5, 6, 7, 8]])
    ids = torch.full((1, 6), 3)
    ids[mask.bool()] = tokens[0]
    embed = model.get_input_embeddings()
    alone = next_token_logits(model, embed(tokens), torch.ones(1, 4, dtype=torch.long))
    torch.testing.assert_close(next_token_logits(model, embed(ids), mask), alone, rtol=0, atol=1e-4)


def test_an_answer_of_no_tokens_is_refused(writer):
    with pytest.raises(ValueError, match="max_new_tokens=0; an answer has at least its end: pass 1 or more"):
        write_greedily(writer, torch.tensor([[5]]), max_new_tokens=0)


def test_kept_features_are_as_good_as_the_picture(tiny_model):
    model = tiny_model()
    ids = torch.tensor([[1, *[90] * 17, 5, 6]])  # 4 x 4 patches and a newline
    picture = {"image_sizes": torch.tensor([[56, 56]]), "image_tile_counts": torch.tensor([1])}
    pixels = torch.randn(1, 3, 56, 56)
    expected = model(input_ids=ids, pixel_values=pixels, **picture).logits
    features = model.model.encode_tiles(pixels)
    model.model.vision_tower = KeptFeatures()
    assert torch.equal(model(input_ids=ids, pixel_values=features, **picture).logits, expected)
    assert write_greedily(model, ids, max_new_tokens=3, pixel_values=features, **picture)


def test_generation_without_later_turns_is_that_of_the_conversation_mask(model, collator, processor):
    ids = processor.apply_chat_template(
        messages(TALKS[1])[:3], add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )["input_ids"]
    turns = conversation_ids(ids[0], collator.ids)
    assert turns.unique().tolist() == [0, 1]
    masks = torch.full((1, 4), model.config.mask_token_id)
    everything = torch.cat([ids, masks], dim=1)
    behind = torch.cat([turns, torch.ones(4, dtype=torch.long)])[None]
    masked = model(input_ids=everything, conversation_ids=behind).logits[0, -4:]
    plain = model(input_ids=everything).logits[0, -4:]
    steps = []

    def generate():
        model.generate(ids, max_new_tokens=4, eos_token_id=None, callback_on_step_end=steps.append)
        return steps.pop(-4)

    with without_later_turns(model, turns):
        found = generate()
    never = [*model.config.suppressed_token_ids]
    for step, logits in ((found, masked), (generate(), plain)):
        logits = logits[:, : model.config.output_vocab_size].index_fill(1, torch.tensor(never), -torch.inf)
        torch.testing.assert_close(step.confidence[0], logits.double().softmax(dim=1).amax(dim=1))
    assert not torch.allclose(masked, plain)


def test_turns_are_of_one_prompt(model):
    ids = torch.arange(4, 8).repeat(2, 1)
    with (
        without_later_turns(model, torch.zeros(4, dtype=torch.long)),
        pytest.raises(ValueError, match="2 prompts were given, but the turns are of one; pass them one by one"),
    ):
        model.generate(ids, max_new_tokens=2)
    assert model.generate(ids, max_new_tokens=2).shape[0] == 2
