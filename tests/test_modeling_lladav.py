"""The model's logits are the official ones with any padding, attention kernel and size, and misuse is refused."""

import copy

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten
from transformers import AutoModelForImageTextToText

import parity
from transformers_lladav import LladaVConfig, LladaVForMaskedDiffusion
from transformers_lladav.modeling_text_lladav import positions_from_mask

PROMPTS = parity.by_id("prompts", "prompts")
CASES = {case["key"].split("/")[1]: case for case in parity.numbers("forward")["cases"]}
VOCAB_IDS = parity.numbers("forward")["vocab_ids"]
ROWS_AT_ONCE = 256
# Another summation order: padding and attention kernels may not change more.
SAME_LOGITS = 2e-4


def reference(case, name):
    return parity.tensors("forward")[f"checkpoint-official/{case}/{name}"]


def check_rows(report, case, logits, prefix=""):
    """Compare (positions, vocabulary) with the stored logits and log-sum-exps."""
    stored = reference(case, f"{prefix}logits")
    label = f"{case} {prefix}".strip(" /")
    report.close("forward: logits", label, logits[:, VOCAB_IDS], stored, parity.LOGITS)
    sums = logits[:, : parity.TOKENS].logsumexp(dim=1)
    report.close("forward: log-sum-exp", label, sums, reference(case, f"{prefix}logsumexp"), parity.LOGITS)


@pytest.mark.parametrize("name", [name for name in CASES if name != "padded_batch"])
def test_every_prompt_has_the_official_embeddings_hidden_states_and_logits(name, model, processor, parity_report):
    inputs = parity.model_inputs(processor, PROMPTS[name])
    positions = CASES[name]["positions"]
    assert inputs.input_ids.shape == (1, CASES[name]["length"])
    pictures = {key: value for key, value in inputs.items() if key != "attention_mask"}
    embeds, _, _ = model.model.embed_inputs(**pictures)
    parity_report.close(
        "forward: embeddings", name, embeds[0, positions], reference(name, "embeds_at_positions"), parity.FEATURES
    )
    hidden = model.model(**inputs).last_hidden_state[0]
    parity_report.close(
        "forward: last hidden state", name, hidden[positions], reference(name, "hidden_last"), parity.LOGITS
    )
    check_rows(parity_report, name, model(**inputs, logits_to_keep=torch.tensor(positions)).logits[0])
    decided = reference(name, "argmax_margin") >= parity.ARGMAX_MARGIN
    ours = torch.cat(
        [model.lm_head(rows)[:, : parity.TOKENS].argmax(dim=1) for rows in hidden[decided].split(ROWS_AT_ONCE)]
    )
    theirs = reference(name, "argmax")[decided]
    parity_report.same("forward: argmax", name, ours.tolist(), theirs.tolist())


@pytest.mark.parametrize("side", ["right", "left"])
def test_a_padded_batch_has_the_official_logits_on_either_side(side, model, processor, parity_report):
    case = CASES["padded_batch"]
    pixels = processor.image_processor([[parity.picture("a5_tiny_gray.png")]], return_tensors="pt")
    ids, lengths = [], case["merged_lengths"]
    for row, mask in zip(case["input_ids"], case["attention_mask_in"], strict=True):
        kept = [token for token, real in zip(row, mask, strict=True) if real]
        ids.append(parity.expand(kept, pixels.num_image_tokens, processor.image_token_id))
    assert [len(row) for row in ids] == lengths
    tensors = processor.tokenizer.pad({"input_ids": ids}, padding_side=side, return_tensors="pt")
    if side == "right":
        assert torch.equal(tensors.attention_mask, reference("padded_batch", "attention_mask").long())
    hidden = model.model(
        input_ids=tensors.input_ids,
        attention_mask=tensors.attention_mask,
        pixel_values=pixels.pixel_values,
        image_sizes=pixels.image_sizes,
        image_tile_counts=pixels.image_tile_counts,
    ).last_hidden_state
    for index, row in enumerate(case["rows"]):
        shift = lengths[0] - lengths[index] if side == "left" else 0
        logits = model.lm_head(hidden[index, [shift + position for position in row["positions"]]])
        check_rows(parity_report, "padded_batch", logits, f"row{index}/")
        ours = logits[:, : parity.TOKENS].argmax(dim=1).tolist()
        parity_report.same(
            "forward: argmax",
            f"padded_batch row{index}",
            ours,
            reference("padded_batch", f"row{index}/argmax").tolist(),
        )


def text_batch(processor, side="left"):
    texts = ["Hi", "Name three primes, please, and say why they are prime.", "What is " * 20]
    return processor(text=texts, padding_side=side, return_tensors="pt")


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_padded_batch_equals_each_sample_alone(side, model, processor):
    batch = text_batch(processor, side)
    logits = model(**batch).logits
    for row, ids, mask in zip(logits, batch.input_ids, batch.attention_mask.bool(), strict=True):
        alone = model(input_ids=ids[mask][None]).logits[0]
        torch.testing.assert_close(row[mask], alone, rtol=0, atol=SAME_LOGITS)


def test_what_stands_in_the_padding_does_not_matter(model, processor):
    batch = text_batch(processor)
    real = batch.attention_mask.bool()
    expected = model(**batch).logits[real]
    other = torch.where(real, batch.input_ids, 1234)
    assert torch.equal(model(input_ids=other, attention_mask=batch.attention_mask).logits[real], expected)


def test_positions_count_real_tokens_wherever_the_padding_stands():
    mask = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 0, 0]])
    assert positions_from_mask(mask).tolist() == [[0, 0, 0, 1, 2], [0, 1, 2, 2, 2]]


def test_every_position_sees_every_other(model, processor):
    ids = text_batch(processor).input_ids[2:, :40]
    changed = ids.clone()
    changed[0, -1] = 42
    first, second = (model.model(input_ids=item).last_hidden_state[0, 0] for item in (ids, changed))
    assert (first - second).abs().max() > 1e-3


@pytest.mark.parametrize("turns", [False, True], ids=["no turns", "turns"])
def test_eager_attention_equals_sdpa(turns, model, processor, kernels):
    batch = text_batch(processor)
    ids = (torch.arange(batch.input_ids.shape[1]) // 7).expand(3, -1) if turns else None
    real = batch.attention_mask.bool()
    kernels({"text_config": "sdpa"})
    expected = model(**batch, conversation_ids=ids).logits[real]
    kernels({"text_config": "eager"})
    torch.testing.assert_close(model(**batch, conversation_ids=ids).logits[real], expected, rtol=0, atol=SAME_LOGITS)


@pytest.mark.slow  # the kernel is compiled
@pytest.mark.parametrize("turns", [False, True], ids=["no turns", "turns"])
def test_flex_attention_equals_sdpa(turns, tiny_model):
    # PyTorch's kernel for CPUs is wrong for heads narrower than 16.
    model = tiny_model(text_config={"hidden_size": 128}).requires_grad_(False)
    torch.manual_seed(1)
    ids, mask = torch.randint(4, 80, (2, 40)), torch.ones(2, 40, dtype=torch.long)
    mask[0, :7] = 0
    turn = (torch.arange(40) // 9).expand(2, -1) if turns else None
    expected = model(input_ids=ids, attention_mask=mask, conversation_ids=turn).logits
    model.set_attn_implementation({"text_config": "flex_attention"})
    got = model(input_ids=ids, attention_mask=mask, conversation_ids=turn).logits
    torch.testing.assert_close(got[mask.bool()], expected[mask.bool()], rtol=0, atol=1e-5)


def test_attentions_and_hidden_states_come_on_request(model, processor, kernels):
    batch = text_batch(processor)
    plain = model(**batch)
    assert plain.hidden_states is None
    assert plain.attentions is None
    kernels({"text_config": "eager"})
    outputs = model(**batch, output_hidden_states=True, output_attentions=True)
    length = batch.input_ids.shape[1]
    assert [tuple(state.shape) for state in outputs.hidden_states] == [(3, length, 32)] * 4
    assert torch.equal(outputs.hidden_states[0], model.get_input_embeddings()(batch.input_ids))
    assert torch.equal(model.lm_head(outputs.hidden_states[-1]), outputs.logits)
    assert [tuple(item.shape) for item in outputs.attentions] == [(3, 4, length, length)] * 3
    weights = outputs.attentions[0][0]  # (heads, queries, keys) of the shortest sample
    padded = batch.attention_mask[0] == 0
    assert weights[:, ~padded][:, :, padded].abs().max() == 0
    torch.testing.assert_close(weights[:, ~padded].sum(dim=-1), torch.ones(4, int((~padded).sum())))
    assert (weights[:, ~padded][:, 0, ~padded] > 0).all()


def test_a_tuple_comes_on_request(model, processor):
    ids = processor(text="Hi", return_tensors="pt").input_ids
    (logits,) = model(input_ids=ids, return_dict=False)
    assert torch.equal(logits, model(input_ids=ids).logits)


def test_features_that_went_in_come_out(model, processor):
    inputs = parity.model_inputs(processor, PROMPTS["single_image"])
    outputs = model(**inputs, logits_to_keep=1)
    features = model.get_image_features(inputs.pixel_values, inputs.image_sizes, inputs.image_tile_counts)
    assert torch.equal(outputs.image_hidden_states, features.pooler_output[0])
    assert outputs.video_hidden_states is None


def test_logits_can_be_kept_for_some_positions(model, processor):
    batch = text_batch(processor)
    every = model(**batch).logits
    last = model(**batch, logits_to_keep=3).logits
    some = model(**batch, logits_to_keep=torch.tensor([0, 5])).logits
    chosen = torch.zeros_like(batch.input_ids, dtype=torch.bool)
    chosen[0, 2] = chosen[2, 4] = True
    packed = model(**batch, logits_to_keep=chosen).logits
    for got, expected in ((last, every[:, -3:]), (some, every[:, [0, 5]]), (packed, every[chosen])):
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-5)


def test_one_turn_for_all_positions_is_no_mask_at_all(model, processor):
    batch = text_batch(processor)
    same = model(**batch, conversation_ids=torch.full_like(batch.input_ids, 7)).logits
    real = batch.attention_mask.bool()
    torch.testing.assert_close(same[real], model(**batch).logits[real], rtol=0, atol=SAME_LOGITS)


def test_an_earlier_turn_does_not_see_a_later_one(model, processor):
    ids = text_batch(processor).input_ids[2:, :40]
    turns = (torch.arange(40) >= 25).long()[None]
    changed = ids.clone()
    changed[0, 25:] = 42
    first, second = (model.model(input_ids=item, conversation_ids=turns).last_hidden_state for item in (ids, changed))
    assert torch.equal(first[0, :25], second[0, :25])
    alone = model.model(input_ids=ids[:, :25]).last_hidden_state
    torch.testing.assert_close(first[:, :25], alone, rtol=0, atol=SAME_LOGITS)
    changed = ids.clone()
    changed[0, 0] = 42
    later = model.model(input_ids=changed, conversation_ids=turns).last_hidden_state[0, 25:]
    assert (later - first[0, 25:]).abs().max() > 1e-3


def gradients(model, **inputs):
    loss = model(**inputs, generator=torch.Generator().manual_seed(3)).loss
    parameters = {name: item for name, item in model.named_parameters() if item.requires_grad}
    found = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
    return loss, {name: grad for name, grad in zip(parameters, found, strict=True) if grad is not None}


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing:FutureWarning")
def test_gradient_checkpointing_gives_equal_gradients(model, processor):
    inputs = parity.model_inputs(processor, PROMPTS["single_image"])
    labels = torch.where(inputs.input_ids == processor.image_token_id, -100, inputs.input_ids)
    trained = copy.deepcopy(model).train().requires_grad_(True)
    loss, plain = gradients(trained, **inputs, labels=labels)
    trained.gradient_checkpointing_enable()
    assert trained.is_gradient_checkpointing
    again, checkpointed = gradients(trained, **inputs, labels=labels)
    assert torch.equal(loss, again)
    assert plain.keys() == checkpointed.keys()
    assert "model.vision_tower.embeddings.patch_embedding.weight" in plain
    for name in plain:
        torch.testing.assert_close(plain[name], checkpointed[name], rtol=1e-5, atol=1e-7)


def test_grouped_key_value_heads_equal_heads_with_repeated_weights(tiny_model):
    grouped = tiny_model(text_config={"num_key_value_heads": 2})
    full = tiny_model()
    weights = grouped.state_dict()
    for name in weights:
        if "language_model" in name and ("k_proj" in name or "v_proj" in name):
            assert weights[name].shape == (16, 32)
            weights[name] = weights[name].view(2, 8, 32).repeat_interleave(2, dim=0).reshape(32, 32)
    full.load_state_dict(weights)
    ids = torch.arange(4, 20)[None]
    torch.testing.assert_close(grouped(input_ids=ids).logits, full(input_ids=ids).logits, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "text_config",
    [{"num_key_value_heads": 1}, {"head_dim": 16}, {"attention_bias": True, "mlp_bias": True}, {"hidden_act": "gelu"}],
    ids=["one key-value head", "wide heads", "biases", "gelu"],
)
def test_other_sizes_and_ids_run_forward_loss_and_generation(text_config, tiny_model):
    model = tiny_model(text_config=text_config)
    # A picture of 112 x 56 pixels: base tile, 2 x 1 tiles, 16 + 8 * (4 + 1) tokens.
    pixels, sizes = torch.randn(3, 3, 56, 56), torch.tensor([[112, 56]])
    ids = torch.tensor([[1] + [90] * 56 + [5, 6, 7]])
    picture = {"pixel_values": pixels, "image_sizes": sizes}
    assert model(input_ids=ids, **picture).logits.shape == (1, 60, 96)
    labels = torch.full_like(ids, -100)
    labels[0, -3:] = ids[0, -3:]
    loss = model.train()(input_ids=ids, labels=labels, **picture).loss
    loss.backward()
    assert torch.isfinite(loss)
    assert model.model.image_newline.grad is not None
    answer = model.eval().generate(ids, max_new_tokens=8, block_length=4, eos_token_id=None, **picture)
    assert answer.shape == (1, 68)
    assert torch.equal(answer[:, :60], ids)
    assert int(answer[:, 60:].max()) < 80


def test_a_checkpoint_survives_saving_and_loading(tiny_model, tmp_path):
    model = tiny_model(text_config={"num_key_value_heads": 2})
    model.save_pretrained(tmp_path)
    ids = torch.arange(4, 20)[None]
    for cls in (LladaVForMaskedDiffusion, AutoModelForImageTextToText):
        loaded = cls.from_pretrained(tmp_path)
        assert type(loaded) is LladaVForMaskedDiffusion
        assert type(loaded.config) is LladaVConfig
        assert loaded.config.text_config.num_key_value_heads == 2
        assert loaded.config.image_grid_pinpoints == model.config.image_grid_pinpoints
        assert loaded.config.vision_config.image_size == 56
        assert torch.equal(loaded(input_ids=ids).logits, model(input_ids=ids).logits)


def test_more_or_fewer_placeholders_than_features_are_refused(model, processor):
    inputs = parity.model_inputs(processor, PROMPTS["single_image"])
    inputs["input_ids"] = inputs.input_ids[:, :1000]
    inputs.pop("attention_mask")
    with pytest.raises(ValueError, match=r"hold 938 image placeholders, but the images give 1261 features \(\[1261\]"):
        model(**inputs)


def test_pictures_without_placeholders_and_the_reverse_are_refused(model, processor):
    inputs = parity.model_inputs(processor, PROMPTS["single_image"])
    text = processor(text="Hi", return_tensors="pt").input_ids
    with pytest.raises(ValueError, match="hold 0 image placeholders, but the images give 1261 features"):
        model(input_ids=text, pixel_values=inputs.pixel_values, image_sizes=inputs.image_sizes)
    with pytest.raises(ValueError, match="hold 1261 image placeholders, but no image was given"):
        model(input_ids=inputs.input_ids)
    with pytest.raises(ValueError, match="hold 1 video placeholders, but no video was given"):
        model(input_ids=torch.tensor([[processor.video_token_id]]))
    with pytest.raises(ValueError, match="pixel_values need image_sizes"):
        model(input_ids=inputs.input_ids, pixel_values=inputs.pixel_values)


def test_tile_and_frame_counts_that_do_not_add_up_are_refused(model):
    pixels = torch.zeros(3, 3, 384, 384)
    with pytest.raises(
        ValueError, match=r"pixel_values holds 3 tiles, but image_sizes has 1 .* image_tile_counts=\[2\]"
    ):
        model.get_image_features(pixels, torch.tensor([[40, 40]]), torch.tensor([2]))
    with pytest.raises(ValueError, match=r"pixel_values_videos holds 3 frames, but video_frame_counts=\[1, 1\]"):
        model.get_video_features(pixels, torch.tensor([1, 1]))


def test_ids_and_embeddings_exclude_each_other(model):
    ids, embeds = torch.tensor([[5]]), torch.zeros(1, 1, 32)
    for inputs in ({}, {"input_ids": ids, "inputs_embeds": embeds}):
        with pytest.raises(ValueError, match="exactly one of input_ids and inputs_embeds"):
            model(**inputs)
    from_embeds = model(inputs_embeds=model.get_input_embeddings()(ids)).logits
    assert torch.equal(from_embeds, model(input_ids=ids).logits)


def single_picture(model):
    """A picture of one tile and its placeholders, for `tiny_model`."""
    ids = torch.tensor([[5, *[model.config.image_token_id] * 17, 6]])
    pixels = torch.randn(1, 3, 56, 56, generator=torch.Generator().manual_seed(0))
    return {"input_ids": ids, "pixel_values": pixels, "image_sizes": torch.tensor([[56, 56]])}


def test_pictures_beside_embeddings_are_refused(tiny_model):
    model = tiny_model()
    inputs = single_picture(model)
    ids = inputs.pop("input_ids")
    with pytest.raises(ValueError, match=r"given with inputs_embeds, which do not say .* embed_inputs makes of both"):
        model(inputs_embeds=model.get_input_embeddings()(ids), **inputs)
    embeds, _, _ = model.model.embed_inputs(ids, **inputs)
    assert torch.equal(model(inputs_embeds=embeds).logits, model(input_ids=ids, **inputs).logits)


def test_a_configuration_may_ask_for_tuples(tiny_model):
    model, asked = tiny_model(), tiny_model(return_dict=False)
    inputs = single_picture(model)
    logits, seen = asked(**inputs)
    expected = model(**inputs)
    assert torch.equal(logits, expected.logits)
    assert torch.equal(seen, expected.image_hidden_states)
    settings = {**inputs, "max_new_tokens": 4}
    assert torch.equal(asked.generate(**settings), model.generate(**settings))
    scored, wanted = (item.score(inputs["input_ids"][:, :1], [[7, 8]], num_samples=2) for item in (asked, model))
    assert torch.equal(scored.log_likelihoods, wanted.log_likelihoods)


def test_the_towers_layers_are_handed_out_on_request(tiny_model):
    model = tiny_model().model
    model.set_attn_implementation("eager")
    inputs = single_picture(model)
    given = (inputs["pixel_values"], inputs["image_sizes"])
    plain = model.get_image_features(*given)
    full = model.get_image_features(*given, output_hidden_states=True, output_attentions=True)
    assert plain.hidden_states is None
    assert plain.attentions is None
    assert [tuple(state.shape) for state in full.hidden_states] == [(1, 16, 24)] * 3
    assert [tuple(weights.shape) for weights in full.attentions] == [(1, 2, 16, 16)] * 2
    assert torch.equal(full.last_hidden_state, model.encode_tiles(inputs["pixel_values"]))
    assert full.last_hidden_state is full.hidden_states[-1]
    assert torch.equal(full.pooler_output[0], plain.pooler_output[0])


def test_pickled_weights_are_never_opened(tmp_path, tiny_model):
    model = tiny_model()
    model.save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(OSError, match=r"model\.safetensors"):
        LladaVForMaskedDiffusion.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match="use_safetensors=False is refused: pickled weights can run any code"):
        LladaVForMaskedDiffusion.from_pretrained(tmp_path, use_safetensors=False)


class LargestLogits(TorchDispatchMode):
    """Watches every tensor that is made, and keeps the most rows of one as wide as the vocabulary."""

    def __init__(self, vocabulary):
        super().__init__()
        self.vocabulary, self.rows = vocabulary, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        for tensor in tree_flatten(made)[0]:
            if isinstance(tensor, torch.Tensor) and tensor.ndim and tensor.shape[-1] == self.vocabulary:
                self.rows = max(self.rows, tensor.numel() // self.vocabulary)
        return made


@pytest.mark.parametrize("chunk_rows", [64, 10**6])
def test_the_loss_never_holds_more_logits_than_a_chunk(tiny_model, chunk_rows):
    model = tiny_model().train()
    model.loss_chunk_rows = chunk_rows
    ids = torch.randint(4, 80, (2, 150), generator=torch.Generator().manual_seed(0))
    weights = torch.full(ids.shape, 1 / 150)
    with LargestLogits(96) as watched:
        model(input_ids=torch.full_like(ids, 92), labels=ids, loss_weights=weights).loss.backward()
    # The transposed head, (32, 96), is in view as well; 300 positions are replaced.
    assert watched.rows == min(chunk_rows, 300)
    assert model.lm_head.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("kernel", ["sdpa", "eager"])
def test_a_mask_of_query_times_key_keeps_samples_apart(tiny_model, kernel):
    model = tiny_model()
    model.set_attn_implementation(kernel)
    first, second = torch.tensor([[5, 6, 7]]), torch.tensor([[8, 9, 10, 11]])
    samples = torch.tensor([[0, 0, 0, 1, 1, 1, 1]])
    mask = (samples[:, :, None] == samples[:, None, :])[:, None]  # (1, 1, 7, 7)
    positions = torch.tensor([[0, 1, 2, 0, 1, 2, 3]])
    packed = model(input_ids=torch.cat([first, second], dim=1), attention_mask=mask, position_ids=positions).logits
    alone = torch.cat([model(input_ids=first).logits, model(input_ids=second).logits], dim=1)
    torch.testing.assert_close(packed, alone, rtol=1e-5, atol=1e-5)
    added = torch.zeros(mask.shape).masked_fill(~mask, torch.finfo(torch.float32).min)
    again = model(input_ids=torch.cat([first, second], dim=1), attention_mask=added, position_ids=positions).logits
    torch.testing.assert_close(again, alone, rtol=1e-5, atol=1e-5)


def test_a_mask_of_query_times_key_has_its_kernels_and_no_turns_beside_it(tiny_model):
    model = tiny_model()
    ids, mask = torch.tensor([[5, 6, 7]]), torch.ones(1, 1, 3, 3, dtype=torch.bool)
    with pytest.raises(ValueError, match="conversation_ids and a 4-D attention_mask were given"):
        model(input_ids=ids, attention_mask=mask, conversation_ids=torch.zeros_like(ids))
    model.set_attn_implementation("flex_attention")
    with pytest.raises(ValueError, match="a 4-D attention_mask was given, which attn_implementation='flex_attention'"):
        model(input_ids=ids, attention_mask=mask)
