"""Training has the official losses and gradients, and losses that can be worked out by hand."""

import copy
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import parity
from transformers_lladav.checkpoint_keys_lladav import native_key
from transformers_lladav.diffusion_lladav import (
    IGNORE_INDEX,
    add_mask_noise,
    chunked_token_loss,
    weighted_token_loss,
)

BATCHES = {batch["key"]: batch for batch in parity.numbers("loss")["batches"] if "error" not in batch}
CONVERSATIONS = parity.by_id("sft_preprocess", "conversations")


def reference(key, name):
    return parity.tensors("loss")[f"{key}/{name}"]


@pytest.fixture(scope="module")
def trained(model):
    """A copy of the official tiny model in training mode."""
    return copy.deepcopy(model).train().requires_grad_(True)


def official_batch(key, processor):
    """Clean ids, labels and pictures of an official batch, padded on the right as there."""
    batch = BATCHES[key]
    labels = reference(key, "merged_labels").long()
    # Text-only samples carry an empty dummy picture there; here they have none.
    files = [CONVERSATIONS[name]["image"] for name in batch["samples"]]
    samples = [[file] if isinstance(file, str) else file for file in files if file]
    pixels = processor.image_processor(
        [[parity.picture(name) for name in names] for names in samples], return_tensors="pt"
    )
    counts = iter(pixels.num_image_tokens)
    rows = [parity.expand(row, counts, processor.image_token_id) for row in batch["input_ids"]]
    width = labels.shape[1]
    ids = torch.tensor([row[:width] + [parity.PAD] * (width - len(row)) for row in rows])
    turns = reference(key, "conversation_ids").long() if batch["use_conversation_mask"] else None
    return {
        "input_ids": ids,
        "labels": labels,
        "conversation_ids": turns,
        "pixel_values": pixels.pixel_values,
        "image_sizes": pixels.image_sizes,
        "image_tile_counts": pixels.image_tile_counts,
    }


def relative(ours, theirs):
    return abs(float(ours) - theirs) / abs(theirs)


def loss_on_official_padding(key, model, inputs):
    """The loss where the official code fills short rows of embeddings with zeros, in view of everything."""
    labels, weights, turns = (inputs.pop(name) for name in ("labels", "loss_weights", "conversation_ids"))
    embeds, _, _ = model.model.embed_inputs(**inputs)
    tokens = (inputs["input_ids"] == model.config.image_token_id).sum(dim=1).tolist()
    pictures = iter(count for count in tokens if count)
    filled = torch.ones(embeds.shape[:2], dtype=torch.bool)
    for row, collated in zip(filled, BATCHES[key]["input_ids"], strict=True):
        row[len(collated) + (next(pictures) - 1 if parity.PICTURE in collated else 0) :] = False
    embeds = embeds * filled[..., None]
    return model(inputs_embeds=embeds, labels=labels, loss_weights=weights, conversation_ids=turns).loss


@pytest.mark.parametrize("key", [key for key, batch in BATCHES.items() if len(batch["samples"]) == 1])
def test_the_forward_pass_draws_and_weighs_as_the_official_training(key, trained, processor, parity_report):
    torch.manual_seed(BATCHES[key]["seed"])
    with torch.no_grad():
        loss = trained(**official_batch(key, processor)).loss
    parity_report.check("loss: noise drawn inside", key, relative(loss, BATCHES[key]["loss"]), parity.LOSS)


@pytest.mark.parametrize("key", BATCHES)
def test_the_same_positions_are_hidden(key, processor, parity_report):
    inputs = official_batch(key, processor)
    torch.manual_seed(BATCHES[key]["seed"])
    noised = add_mask_noise(inputs["input_ids"], inputs["labels"], parity.MASK, (processor.image_token_id,))
    hidden = [row.nonzero()[:, 0].tolist() for row in noised.labels != IGNORE_INDEX]
    parity_report.same("loss: hidden positions", key, hidden, BATCHES[key]["masked_positions"])
    assert all(
        torch.equal(row[at], torch.full_like(row[at], parity.MASK))
        for row, at in zip(noised.input_ids, hidden, strict=True)
    )


def given_noise(key, inputs):
    """The official draws applied by hand: noised ids, labels where hidden, weights."""
    labels = inputs["labels"]
    p = (0.999 * reference(key, "t") + 0.001)[:, None]
    answer = labels != -100
    assert answer.sum(dim=1).tolist() == BATCHES[key]["answer_length"]
    hidden = answer & (reference(key, "u") < p)
    return {
        **inputs,
        "input_ids": inputs["input_ids"].masked_fill(hidden, parity.MASK),
        "labels": labels.masked_fill(~hidden, -100),
        "loss_weights": hidden / (p * answer.sum(dim=1, keepdim=True)),
    }


@pytest.mark.parametrize("key", BATCHES)
def test_given_noise_has_the_official_loss_and_gradients(key, trained, processor, parity_report):
    batch, names = BATCHES[key], parity.numbers("loss")["param_names"]
    inputs = given_noise(key, official_batch(key, processor))
    padded = len(batch["samples"]) > 1
    loss = loss_on_official_padding(key, trained, inputs) if padded else trained(**inputs).loss
    parity_report.check("loss: noise given", key, relative(loss.detach(), batch["loss"]), parity.LOSS)
    parameters = dict(trained.named_parameters())
    found = torch.autograd.grad(loss, [parameters[native_key(name)] for name in names])
    for name, gradient in zip(names, found, strict=True):
        norm = batch["grad_norms"][name]
        name_here = name.rsplit("vision_model.")[-1]
        off = relative(gradient.double().norm(), norm)
        parity_report.check("gradients: norms", f"{key}, {name_here}", off, parity.GRADIENT)
        if name in batch["grad_row_ids"]:
            part, stored = gradient[batch["grad_row_ids"][name]], reference(key, f"grad_rows/{name}")
        else:
            part = gradient[:32] if gradient.ndim == 1 else gradient.flatten(1)[:8, :16]
            stored = reference(key, f"grad/{name}")
        off = float((part - stored).abs().max()) / norm
        parity_report.check("gradients: entries", f"{key}, {name_here}", off, parity.GRADIENT)


def test_equal_logits_over_v_tokens_give_a_loss_of_masked_times_ln_v_over_p_n():
    # 2 of 4 answer tokens hidden at p = 1/2: 2 ln V / (1/2 * 4) = ln V.
    for vocabulary in (2, 4, 1000):
        loss = weighted_token_loss(
            torch.zeros(2, vocabulary), torch.tensor([0, 1]), torch.full((2,), 1 / (0.5 * 4)), batch=1
        )
        assert float(loss) == pytest.approx(math.log(vocabulary), rel=1e-6)


def test_the_loss_is_divided_by_the_number_of_samples():
    one = weighted_token_loss(torch.zeros(3, 8), torch.zeros(3, dtype=torch.long), torch.ones(3), batch=1)
    four = weighted_token_loss(torch.zeros(3, 8), torch.zeros(3, dtype=torch.long), torch.ones(3), batch=4)
    assert float(one) == pytest.approx(3 * math.log(8))
    assert float(four) == pytest.approx(3 * math.log(8) / 4)


def test_a_model_with_a_zero_head_has_the_loss_of_equal_logits(tiny_model):
    model = tiny_model().train()
    torch.nn.init.zeros_(model.lm_head.weight)
    ids = torch.arange(4, 16).repeat(2, 1)
    labels = ids.clone()
    labels[0, :4] = labels[1, :10] = -100
    noised = add_mask_noise(ids, labels, 92, generator=torch.Generator().manual_seed(11))
    hidden = (noised.labels != -100).sum(dim=1)
    p = 0.999 * torch.rand(2, generator=torch.Generator().manual_seed(11)) + 0.001
    assert (hidden > 0).all()
    expected = float((hidden * math.log(96) / p / torch.tensor([8, 2])).sum()) / 2
    drawn = model(input_ids=ids, labels=labels, generator=torch.Generator().manual_seed(11)).loss
    given = model(input_ids=noised.input_ids, labels=noised.labels, loss_weights=noised.loss_weights).loss
    assert float(drawn.detach()) == pytest.approx(expected, rel=1e-5)
    assert float(given.detach()) == pytest.approx(expected, rel=1e-5)


def test_half_precision_logits_are_weighed_in_float32():
    logits = torch.full((1, 100), 3.0, dtype=torch.bfloat16)
    loss = weighted_token_loss(logits, torch.tensor([7]), torch.ones(1), batch=1)
    assert loss.dtype == torch.float32
    assert float(loss) == pytest.approx(math.log(100), rel=1e-6)


@given(st.integers(0, 2**31), st.integers(1, 4), st.integers(1, 40))
def test_noise_hides_only_labelled_tokens_and_weighs_them_by_one_over_p_n(seed, batch, length):
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(4, 90, (batch, length), generator=generator)
    labels = torch.where(torch.rand(batch, length, generator=generator) < 0.6, ids, -100)
    ids[:, ::5] = 90  # placeholders, some of them labelled
    noised = add_mask_noise(ids, labels, 92, (90,), torch.Generator().manual_seed(seed))
    hidden = noised.input_ids != ids
    learnable = (labels != -100) & (ids != 90)
    assert not (hidden & ~learnable).any()
    assert torch.equal(noised.input_ids[hidden], torch.full_like(ids, 92)[hidden])
    assert torch.equal(noised.labels, torch.where(hidden, labels, -100))
    draws = torch.Generator().manual_seed(seed)
    p = 0.999 * torch.rand(batch, generator=draws) + 0.001
    assert torch.equal(hidden, learnable & (torch.rand(batch, length, generator=draws) < p[:, None]))
    weights = 1 / (p * learnable.sum(dim=1).clamp(min=1))
    torch.testing.assert_close(noised.loss_weights, hidden * weights[:, None])


def test_the_expected_weight_of_a_sample_is_one():
    # Each labelled token counts 1 / (p n) with probability p: n of them count 1 on average.
    ids = torch.zeros(20_000, 10, dtype=torch.long)
    noised = add_mask_noise(ids, ids, 92, generator=torch.Generator().manual_seed(0))
    assert float(noised.loss_weights.sum(dim=1).mean()) == pytest.approx(1, abs=0.05)


def test_placeholders_are_never_hidden_even_where_they_are_labelled(model, processor):
    ids = torch.tensor([[5, processor.image_token_id, processor.video_token_id, 6]]).repeat(500, 1)
    noised = add_mask_noise(ids, ids, parity.MASK, (processor.image_token_id, processor.video_token_id))
    assert torch.equal(noised.input_ids[:, 1:3], ids[:, 1:3])
    assert (noised.labels[:, 1:3] == -100).all()
    assert (noised.input_ids[:, [0, 3]] == parity.MASK).any(dim=0).all()


@pytest.mark.parametrize("labels", ["none", "unhidden"])
def test_nothing_hidden_gives_loss_zero_with_finite_gradients(labels, tiny_model):
    model = tiny_model().train()
    ids = torch.arange(4, 16)[None]
    if labels == "none":
        loss = model(input_ids=ids, labels=torch.full_like(ids, -100)).loss
    else:
        loss = model(input_ids=ids, labels=torch.full_like(ids, -100), loss_weights=torch.zeros(ids.shape)).loss
    loss.backward()
    assert float(loss.detach()) == 0
    assert torch.equal(model.lm_head.weight.grad, torch.zeros_like(model.lm_head.weight))
    for parameter in model.model.language_model.parameters():
        assert parameter.grad is None or not parameter.grad.abs().max()


def test_given_noise_is_deterministic_and_needs_labels(tiny_model):
    model = tiny_model()
    ids = torch.arange(4, 16)[None]
    weights = torch.ones(ids.shape)
    losses = [float(model(input_ids=ids, labels=ids, loss_weights=weights).loss.detach()) for _ in range(2)]
    assert losses[0] == losses[1]
    with pytest.raises(ValueError, match="loss_weights were given without labels"):
        model(input_ids=ids, loss_weights=weights)
    embeds = model.get_input_embeddings()(ids)
    with pytest.raises(ValueError, match="noise is drawn on input_ids; with inputs_embeds pass loss_weights"):
        model(inputs_embeds=embeds, labels=ids)
    from_embeds = model(inputs_embeds=embeds, labels=ids, loss_weights=weights).loss
    assert float(from_embeds.detach()) == pytest.approx(losses[0], rel=1e-6)


def test_a_generator_alone_decides_the_noise(tiny_model):
    model = tiny_model()
    ids = torch.arange(4, 40)[None]
    losses = []
    for seed in (5, 5, 6):
        loss = model(input_ids=ids, labels=ids, generator=torch.Generator().manual_seed(seed)).loss
        losses.append(float(loss.detach()))
    assert losses[0] == losses[1] != losses[2]


def test_logits_come_with_a_loss_only_when_asked_for(tiny_model):
    model = tiny_model()
    ids = torch.arange(4, 16)[None]
    assert model(input_ids=ids, labels=ids).logits is None
    assert model(input_ids=ids, labels=ids, logits_to_keep=2).logits.shape == (1, 2, 96)


@pytest.mark.parametrize("positions", [0, 1, 7, 8, 20])
def test_the_loss_in_chunks_is_the_loss_and_so_are_its_gradients(positions):
    generator = torch.Generator().manual_seed(positions)
    hidden = torch.randn(positions, 6, generator=generator, dtype=torch.float64)
    labels = torch.randint(0, 11, (positions,), generator=generator)
    weights = torch.rand(positions, generator=generator)
    weight = torch.randn(11, 6, generator=generator, dtype=torch.float64)
    found = []
    for chunk_rows in (None, 8):
        inputs = [hidden.clone().requires_grad_(), weight.clone().requires_grad_()]

        def head(rows, inputs=inputs):
            return rows @ inputs[1].T

        if chunk_rows is None:
            loss = weighted_token_loss(head(inputs[0]), labels, weights, 2)
        else:
            loss = chunked_token_loss(inputs[0], head, labels, weights, 2, chunk_rows)
            with torch.no_grad():
                assert torch.equal(chunked_token_loss(inputs[0], head, labels, weights, 2, chunk_rows), loss)
        found.append([loss, *torch.autograd.grad(loss, inputs)])
    for one, chunked in zip(*found, strict=True):
        torch.testing.assert_close(chunked, one, rtol=1e-5, atol=1e-7)
    assert positions or found[1][0] == 0
