"""Models as recipes want them: element types, seeds, checkpointing, and what is refused before it is loaded."""

import json
import shutil
from dataclasses import replace

import pytest
import torch

pytest.importorskip("peft")

from training_runs import quick_recipe
from transformers_lladav import BUNDLED_CHECKPOINT
from transformers_lladav.recipes import RECIPES
from transformers_lladav.trainable import trained_names
from transformers_lladav.training_model import choose_precision, frozen_dtype, load_for_training

CPU = torch.device("cpu")
BUNDLED = str(BUNDLED_CHECKPOINT)


@pytest.mark.parametrize(
    ("recipe", "device", "bf16", "expected"),
    [
        ("lora", "cpu", False, "fp32"),
        ("qlora", "cpu", False, "bf16"),
        ("lora", "cuda", True, "bf16"),
        ("lora", "cuda", False, "fp16"),
    ],
)
def test_auto_takes_what_the_device_has(recipe, device, bf16, expected, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: bf16)
    assert choose_precision(RECIPES[recipe], torch.device(device)) == expected


def test_a_precision_that_the_device_has_not(monkeypatch):
    with pytest.raises(ValueError, match='precision="fp16" needs a GPU, not cpu; pass precision="bf16" or "fp32"'):
        choose_precision(replace(RECIPES["lora"], precision="fp16"), CPU)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: False)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Old card")
    with pytest.raises(ValueError, match='Old card has no bfloat16; pass precision="fp16"'):
        choose_precision(RECIPES["stage1"], torch.device("cuda"))


@pytest.mark.parametrize(
    ("recipe", "precision", "sharded", "dtype"),
    [
        ("lora", "fp32", False, torch.float32),
        ("lora", "bf16", False, torch.bfloat16),
        ("lora", "fp16", False, torch.float16),
        ("lora", "bf16", True, torch.float32),
        ("full", "bf16", False, torch.float32),
        ("projector", "bf16", False, torch.bfloat16),
    ],
)
def test_what_is_frozen_may_be_held_in_half(recipe, precision, sharded, dtype):
    assert frozen_dtype(RECIPES[recipe], precision, sharded) == dtype


def test_what_is_loaded_is_what_was_asked_for():
    prepared = load_for_training(BUNDLED, quick_recipe(precision="bf16"), CPU)
    assert (prepared.precision, prepared.source, prepared.stored_dtype) == ("bf16", BUNDLED, torch.bfloat16)
    types = {(parameter.requires_grad, parameter.dtype) for parameter in prepared.model.parameters()}
    assert types == {(True, torch.float32), (False, torch.bfloat16)}
    assert prepared.bare is prepared.model.get_base_model()
    full = load_for_training(BUNDLED, quick_recipe("full"), CPU)
    assert full.bare is full.model
    assert {parameter.dtype for parameter in full.model.parameters()} == {torch.float32}


def test_an_adapter_s_first_weights_are_those_of_the_seed():
    def first(seed):
        torch.seed()  # whatever was drawn before
        prepared = load_for_training(BUNDLED, quick_recipe(seed=seed), CPU)
        name = next(name for name in trained_names(prepared.model) if "lora_A" in name)
        return prepared.model.get_parameter(name).detach().clone()

    one, again, other = first(0), first(0), first(1)
    assert torch.equal(one, again)
    assert not torch.equal(one, other)


@pytest.mark.parametrize("active", [True, False])
def test_checkpointing_covers_tower_and_language_model(active):
    model = load_for_training(BUNDLED, quick_recipe(gradient_checkpointing=active), CPU).bare
    layers = [*model.model.vision_tower.encoder.layers, *model.model.language_model.layers]
    assert {getattr(layer, "gradient_checkpointing", False) for layer in layers} == {active}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "llava", "text_config": {}, "vision_config": {}}, "holds a 'llava' model; give a LLaDA-V"),
        (
            {"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}},
            "holds quantised weights, which the recipe 'lora' cannot train; give the checkpoint they were made from",
        ),
    ],
)
def test_other_models_are_refused_before_any_weights_are_read(change, message, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(BUNDLED_CHECKPOINT, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | change))
    for weights in folder.glob("*.safetensors"):
        weights.unlink()
    with pytest.raises(ValueError, match=message):
        load_for_training(str(folder), quick_recipe(), CPU)


def test_a_model_that_is_not_there(tmp_path):
    with pytest.raises(OSError, match="nowhere"):
        load_for_training(str(tmp_path / "nowhere"), quick_recipe(), CPU)
