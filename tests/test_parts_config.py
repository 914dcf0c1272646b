"""Configurations of LLaDA and SigLIP become ours, and every computation that is not here is refused by its field."""

import json

import pytest

import parity
from transformers_lladav import LladaVConfig
from transformers_lladav.parts_config import (
    SUPPORTED_VALUES,
    language_problems,
    translate_language,
    translate_parts,
    translate_vision,
    vision_layers,
    vision_problems,
)
from transformers_lladav.tiling_lladav import DEFAULT_PINPOINTS


@pytest.fixture
def llada():
    return json.loads((parity.FOLDER / "checkpoint-llada" / "config.json").read_text())


@pytest.fixture
def siglip():
    return json.loads((parity.FOLDER / "checkpoint-siglip" / "config.json").read_text())


def test_the_parts_translate(llada, siglip):
    config = LladaVConfig(**translate_parts(llada, siglip))
    text, vision = config.text_config, config.vision_config
    assert (text.hidden_size, text.intermediate_size, text.num_hidden_layers, text.vocab_size) == (16, 24, 3, 126464)
    assert (text.num_attention_heads, text.num_key_value_heads, text.head_dim) == (2, 2, 8)
    assert (text.max_position_embeddings, text.rms_norm_eps, text.hidden_act) == (16384, 1e-5, "silu")
    assert text.rope_parameters == {"rope_type": "default", "rope_theta": 500000.0}
    assert (text.bos_token_id, text.eos_token_id, text.pad_token_id) == (126080, 126348, 126081)
    assert (config.mask_token_id, config.suppressed_token_ids) == (126336, [126081, 126080, 126346, 126347])
    assert (vision.hidden_size, vision.intermediate_size, vision.num_attention_heads) == (32, 64, 4)
    assert (vision.num_hidden_layers, vision.image_size, vision.patch_size) == (3, 384, 14)
    assert (vision.hidden_act, vision.layer_norm_eps, vision.vision_use_head) == ("gelu_pytorch_tanh", 1e-6, False)
    assert config.image_grid_pinpoints == DEFAULT_PINPOINTS


def test_other_values_are_carried_over(llada):
    llada |= {"n_kv_heads": 1, "rope_theta": 1e4, "rms_norm_eps": 1e-6, "attention_dropout": 0.1, "init_std": 0.01}
    llada |= {"embedding_size": 200, "mask_token_id": 150, "eos_token_id": 151, "pad_token_id": 152}
    translated = translate_language(llada, 512)
    assert translated["text_config"] == {
        "hidden_size": 16,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "vocab_size": 200,
        "intermediate_size": 24,
        "max_position_embeddings": 512,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e4},
        "rms_norm_eps": 1e-6,
        "attention_dropout": 0.1,
        "initializer_range": 0.01,
        "pad_token_id": 152,
    }
    assert translated["mask_token_id"] == 150
    assert translated["suppressed_token_ids"] == [151, 126080, 126346, 126347]


def test_null_sizes_follow_from_others(llada):
    llada |= {"mlp_hidden_size": None, "mlp_ratio": 4, "n_kv_heads": None, "embedding_size": None, "vocab_size": 99}
    assert language_problems(llada) == []
    text = translate_language(llada)["text_config"]
    assert (text["intermediate_size"], text["num_key_value_heads"], text["vocab_size"]) == (4 * 16, 2, 99)


OTHER_COMPUTATIONS = {
    "block_type": "sequential",
    "block_group_size": 2,
    "activation_type": "swiglu",
    "layer_norm_type": "default",
    "layer_norm_with_affine": False,
    "bias_for_layer_norm": True,
    "attention_layer_norm": True,
    "include_bias": True,
    "include_qkv_bias": True,
    "rope": False,
    "rope_scaling": {"type": "linear", "factor": 2.0},
    "alibi": True,
    "multi_query_attention": True,
    "clip_qkv": 8.0,
    "input_emb_norm": True,
    "scale_logits": True,
    "weight_tying": True,
    "embedding_dropout": 0.1,
    "residual_dropout": 0.1,
}


@pytest.mark.parametrize("field", OTHER_COMPUTATIONS)
def test_another_computation_is_refused(llada, field):
    value = OTHER_COMPUTATIONS[field]
    problems = language_problems(llada | {field: value})
    choices = ", ".join(repr(supported) for supported in SUPPORTED_VALUES[field])
    assert problems == [f"config.json has {field}={value!r}; supported: {choices}"]


def test_all_of_them_are_named_at_once(llada, siglip):
    assert OTHER_COMPUTATIONS.keys() == SUPPORTED_VALUES.keys()
    problems = language_problems(llada | OTHER_COMPUTATIONS | {"d_model": "16", "mask_token_id": -1, "rope_theta": 0})
    assert len(problems) == len(OTHER_COMPUTATIONS) + 3
    assert "config.json has d_model='16'; it must be a whole number of at least 1" in problems
    assert "config.json has mask_token_id=-1; it must be a whole number of at least 0" in problems
    assert "config.json has rope_theta=0; it must be a number above 0" in problems
    with pytest.raises(ValueError, match=r"language model: .*alibi=True(.|\n)*vision tower: .*model_type='clip'"):
        translate_parts(llada | {"alibi": True}, siglip | {"model_type": "clip"})


def test_a_number_is_no_yes_or_no(llada):
    assert len(language_problems(llada | {"block_group_size": True, "rope": 1, "n_heads": True})) == 3


@pytest.mark.parametrize("field", ["d_model", "n_layers", "n_heads"])
def test_sizes_must_be_there(llada, field):
    del llada[field]
    assert language_problems(llada) == [f"config.json has {field}=None; it must be a whole number of at least 1"]


@pytest.mark.parametrize(
    ("field", "beside"), [("n_kv_heads", {}), ("embedding_size", {}), ("mlp_ratio", {"mlp_hidden_size": None})]
)
def test_sizes_that_may_be_null_must_be_whole_otherwise(llada, field, beside):
    for value in (0, "4", 1.5):
        problems = language_problems(llada | beside | {field: value})
        assert problems == [f"config.json has {field}={value!r}; it must be a whole number of at least 1"]


def test_another_model_type_is_the_only_problem_reported(llada, siglip):
    (problem,) = language_problems(llada | {"model_type": "llama", "alibi": True})
    assert problem.startswith("config.json has model_type='llama'; LLaDA in its original layout")
    (problem,) = vision_problems(siglip | {"model_type": "siglip2"})
    assert problem.startswith("config.json has model_type='siglip2'; supported: 'siglip'")


def test_positions_must_be_there(llada, siglip):
    with pytest.raises(ValueError, match="max_positions=0 must be a whole number of at least 1"):
        translate_parts(llada, siglip, max_positions=0)


def test_what_siglip_leaves_out_is_its_default():
    """transformers writes no values that are the class's own: the base model's file holds nothing but its type."""
    base = {"model_type": "siglip", "vision_config": {"model_type": "siglip_vision_model"}}
    assert (vision_problems(base), vision_layers(base)) == ([], 12)
    config = LladaVConfig(**translate_vision(base))
    vision = config.vision_config
    assert (vision.hidden_size, vision.intermediate_size, vision.num_hidden_layers) == (768, 3072, 11)
    assert (vision.image_size, vision.patch_size, vision.num_attention_heads) == (224, 16, 12)
    assert config.image_grid_pinpoints[:2] == [[224, 224], [448, 224]]
    assert config.image_grid_pinpoints[-1] == [6 * 224, 6 * 224]


def test_a_vision_part_alone(siglip):
    alone = siglip["vision_config"]
    assert alone["model_type"] == "siglip_vision_model"
    assert (vision_problems(alone), vision_layers(alone)) == ([], 4)
    assert translate_vision(alone) == translate_vision(siglip)


@pytest.mark.parametrize("layers", [1, 0, "4", None])
def test_a_layer_must_be_left(siglip, layers):
    siglip["vision_config"]["num_hidden_layers"] = layers
    (problem,) = vision_problems(siglip)
    assert problem.startswith(f"config.json has num_hidden_layers={layers!r}; it must be a whole number of at least 2")
