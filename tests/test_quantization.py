"""Fewer bits: exactly the language model's layers, near the ones they stand for, trained around and answered from."""

import sys
from types import SimpleNamespace

import pytest
import torch

from transformers_lladav import LladaVConfig, LladaVForMaskedDiffusion, asking
from transformers_lladav.quantization import (
    QUANTIZATIONS,
    is_quantized,
    matrix_bytes,
    nf4_config,
    quantization_config,
)
from transformers_lladav.recipes import RECIPES
from transformers_lladav.shape_scenes import NUMBER_WORDS, make_scene, render_scene
from transformers_lladav.trainable import expected_trainable, parameter_groups, prepare_trainable, summarise

RECIPE = RECIPES["qlora"]
LAYERS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
PLACEHOLDER, MASK = 500, 499


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A checkpoint whose widths are multiples of the block of 64, with weights of a trained model's size."""
    pytest.importorskip("bitsandbytes", reason="four-bit weights need bitsandbytes")
    text = {"vocab_size": 512, "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2}
    config = LladaVConfig(
        text_config=text | {"num_attention_heads": 4, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 3},
        vision_config={
            "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 1, "num_attention_heads": 2,
            "image_size": 64, "patch_size": 16, "vision_use_head": False,
        },
        image_token_id=PLACEHOLDER,
        video_token_id=PLACEHOLDER + 1,
        mask_token_id=MASK,
        output_vocab_size=MASK,
        suppressed_token_ids=[1, 3],
        image_grid_pinpoints=[],
        single_tile_newline=False,
    )  # fmt: skip
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("checkpoint")
    LladaVForMaskedDiffusion(config).save_pretrained(path)
    return path


def load(folder, dtype=torch.bfloat16, four_bit=True):
    options = {"quantization_config": nf4_config(dtype)} if four_bit else {}
    return LladaVForMaskedDiffusion.from_pretrained(folder, dtype=dtype, **options)


def sample():
    """A picture of 16 patches and 8 tokens, all of them hidden."""
    generator = torch.Generator().manual_seed(1)
    labels = torch.randint(4, MASK, (1, 24), generator=generator)
    labels[:, :16] = -100
    ids = torch.full((1, 24), MASK)
    ids[:, :16] = PLACEHOLDER
    return {
        "input_ids": ids,
        "labels": labels,
        "loss_weights": (labels >= 0) / 8,
        "pixel_values": torch.randn(1, 3, 64, 64, generator=generator),
        "image_sizes": torch.tensor([[64, 64]]),
    }


def test_exactly_the_language_models_layers_are_four_bit(folder):
    model = load(folder)
    stored = {name for name, parameter in model.named_parameters() if parameter.dtype == torch.uint8}
    blocks = {"self_attn": LAYERS[:4], "mlp": LAYERS[4:]}
    assert stored == {
        f"model.language_model.layers.{index}.{block}.{layer}.weight"
        for index in range(2)
        for block, layers in blocks.items()
        for layer in layers
    }
    state = model.model.language_model.layers[0].mlp.up_proj.weight.quant_state
    assert (state.quant_type, state.nested, state.blocksize, state.dtype) == ("nf4", True, 64, torch.bfloat16)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.uint8, torch.bfloat16}
    plain = load(folder, four_bit=False)
    assert is_quantized(model) == "nf4"
    assert is_quantized(plain) is None
    for name, tensor in plain.state_dict().items():
        if name not in stored:
            assert torch.equal(tensor, model.state_dict()[name]), name


def test_weights_are_within_half_a_step_of_what_they_stand_for(folder):
    """The widest gap of NF4 is 0.304 of a block's largest entry, so nothing moves by more than half of that."""
    from bitsandbytes.functional import dequantize_4bit

    model, plain = load(folder, torch.float32), load(folder, torch.float32, four_bit=False)
    parts = [(m.model.language_model.layers[1].mlp.down_proj.weight) for m in (model, plain)]
    found = dequantize_4bit(parts[0].data, parts[0].quant_state).reshape(-1, 64)
    meant = parts[1].detach().reshape(-1, 64)
    largest = meant.abs().amax(dim=1, keepdim=True)
    assert ((found - meant).abs() / largest).max() < 0.304 / 2 * 1.05  # constants are rounded as well
    assert 0.05 < (found - meant).norm() / meant.norm() < 0.12


def test_logits_stay_near_those_of_the_unquantised_weights(folder):
    inputs = {name: value for name, value in sample().items() if name not in ("labels", "loss_weights")}
    with torch.no_grad():
        logits = {
            four_bit: load(folder, torch.float32, four_bit).eval()(**inputs).logits for four_bit in (True, False)
        }
    deviation = (logits[True] - logits[False]).norm() / logits[False].norm()
    assert 0.01 < deviation < 0.2


def test_a_step_changes_the_adapters_and_the_projector_and_nothing_else(folder):
    model = load(folder)
    expected = expected_trainable(model, RECIPE)
    prepared = prepare_trainable(model, RECIPE)
    prepared.train()
    kinds = {name: parameter.dtype for name, parameter in prepared.named_parameters()}
    assert {kinds[name] for name in expected} == {torch.float32}
    before = {name: parameter.detach().clone() for name, parameter in prepared.named_parameters()}
    optimizer = torch.optim.AdamW(parameter_groups(prepared, RECIPE))
    losses = []
    for _ in range(2):  # B is zero in the first step, so A moves in the second
        with torch.autocast("cpu", torch.bfloat16):
            loss = prepared(**sample()).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    changed = {name for name, parameter in prepared.named_parameters() if not torch.equal(parameter, before[name])}
    assert changed == expected
    assert 0 < losses[1] < losses[0] < float("inf")


def test_four_bit_entries_are_counted_as_what_they_stand_for(folder):
    language, plain = (
        next(row for row in summarise(prepare_trainable(model, RECIPE), RECIPE) if row.part == "language_model")
        for model in (load(folder), load(folder, four_bit=False))
    )
    assert language == plain


def test_without_the_package_the_error_names_the_fix(monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(ImportError, match=r"pip install 'transformers_lladav\[qlora\]'"):
        nf4_config(torch.bfloat16)


def test_an_integer_type_to_compute_in_is_refused():
    with pytest.raises(ValueError, match=r"compute_dtype=torch\.int8.*torch\.bfloat16"):
        nf4_config(torch.int8)


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        (None, None),
        ({"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}, "nf4"),
        ({"load_in_4bit": True, "bnb_4bit_quant_type": "fp4"}, "fp4"),
        ({"load_in_4bit": False, "load_in_8bit": True, "quant_method": "bitsandbytes"}, "int8"),
        ({"quant_method": "gptq", "bits": 4}, "gptq"),
    ],
)
def test_quantised_models_are_recognised_by_their_configuration(settings, name):
    config = SimpleNamespace() if settings is None else SimpleNamespace(quantization_config=settings)
    assert is_quantized(SimpleNamespace(config=config)) == name


# Answering from fewer bits

ON_CPU = ("nf4", "int8", "int8-weight-only")


def stored_bytes(weight):
    """Of a quantised matrix, its constants included."""
    if hasattr(weight, "quant_state"):
        state = weight.quant_state
        return weight.nbytes + state.absmax.nbytes + state.state2.absmax.nbytes
    if hasattr(weight, "SCB"):
        return weight.CB.nbytes + weight.SCB.nbytes
    return weight.qdata.nbytes + weight.scale.nbytes + weight.zero_point.nbytes


@pytest.mark.parametrize("name", ON_CPU)
def test_a_checkpoint_is_held_in_fewer_bits_and_answers_nearly_the_same(name, folder):
    pytest.importorskip(QUANTIZATIONS[name])
    config = quantization_config(name, torch.bfloat16)
    model = LladaVForMaskedDiffusion.from_pretrained(
        folder, dtype=torch.bfloat16, quantization_config=config, device_map={"": "cpu"}
    ).eval()
    plain = load(folder, four_bit=False).eval()
    for layer_name, layer in plain.named_modules():
        if not isinstance(layer, torch.nn.Linear):
            continue
        weight = model.get_submodule(layer_name).weight
        if "language_model.layers" in layer_name:
            assert stored_bytes(weight) == matrix_bytes(name, layer.out_features, layer.in_features)
        else:
            assert torch.equal(weight, layer.weight), layer_name
    assert is_quantized(model) == {"nf4": "nf4", "int8": "int8"}.get(name, "torchao")
    inputs = {key: value for key, value in sample().items() if key not in ("labels", "loss_weights")}
    inputs["pixel_values"] = inputs["pixel_values"].to(torch.bfloat16)
    with torch.no_grad():
        found, expected = (each(**inputs).logits.float() for each in (model, plain))
    assert 0 < (found - expected).norm() / expected.norm() < (0.3 if name == "nf4" else 0.05)


@pytest.mark.parametrize("name", ["nf4", "int8-weight-only"])
def test_the_bundled_checkpoint_still_counts(name):
    pytest.importorskip(QUANTIZATIONS[name])
    assistant = asking.load(device="cpu", quantization=name)
    assert is_quantized(assistant.model)
    scene = make_scene("demo", 0)
    answer = asking.ask(assistant, render_scene(scene, 128), "How many shapes are there?")
    assert answer.text == NUMBER_WORDS[len(scene.objects)]


def test_ways_that_cannot_be_gone_are_refused(folder, monkeypatch):
    with pytest.raises(ValueError, match=r"^quantization='int3' is not known; choose one of nf4, int8, int8-weight"):
        asking.load(folder, quantization="int3")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    with pytest.raises(ValueError, match=r"'int4-weight-only' needs a CUDA GPU, not device='cpu'; nf4 runs on CPUs"):
        asking.load(folder, device="cpu", quantization="int4-weight-only")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"needs torchao: pip install 'transformers_lladav\[quantized\]'$"):
        asking.load(folder, quantization="int8-weight-only")


def test_what_is_quantised_already_is_not_quantised_again(folder, tmp_path):
    load(folder).save_pretrained(tmp_path)
    with pytest.raises(
        ValueError, match=r"^quantization='nf4', but the weights of .* are quantised already; leave it"
    ):
        asking.load(tmp_path, device="cpu", quantization="nf4")
