"""Every tensor of every layout has one native name and finds the way back, and folders load under both."""

import json

import pytest
import torch
from safetensors import safe_open

import parity
from transformers_lladav import LladaVForMaskedDiffusion
from transformers_lladav.checkpoint_keys_lladav import language_key, native_key, official_key, vision_key

TOWER = "model.vision_tower.vision_tower.vision_model."
OFFICIAL_AND_NATIVE = pytest.mark.parametrize(
    ("official", "native"),
    [
        ("model.embed_tokens.weight", "model.language_model.embed_tokens.weight"),
        ("lm_head.weight", "lm_head.weight"),
        ("model.norm.weight", "model.language_model.norm.weight"),
        ("model.layers.31.self_attn.q_proj.weight", "model.language_model.layers.31.self_attn.q_proj.weight"),
        ("model.layers.0.mlp.gate_proj.weight", "model.language_model.layers.0.mlp.gate_proj.weight"),
        ("model.mm_projector.0.weight", "model.multi_modal_projector.linear_1.weight"),
        ("model.mm_projector.2.bias", "model.multi_modal_projector.linear_2.bias"),
        ("model.image_newline", "model.image_newline"),
        (TOWER + "embeddings.patch_embedding.bias", "model.vision_tower.embeddings.patch_embedding.bias"),
        (TOWER + "encoder.layers.7.mlp.fc1.weight", "model.vision_tower.encoder.layers.7.mlp.fc1.weight"),
        (TOWER + "post_layernorm.weight", "model.vision_tower.post_layernorm.weight"),
    ],
)


@OFFICIAL_AND_NATIVE
def test_official_names_become_native(official, native):
    assert native_key(official) == native


@OFFICIAL_AND_NATIVE
def test_native_names_become_official(official, native):
    assert official_key(native) == official
    assert official_key(official) == official


def test_every_native_name_has_one_official_name(model):
    index = json.loads((parity.OFFICIAL / "model.safetensors.index.json").read_text())
    official = [official_key(name) for name in model.state_dict()]
    assert sorted(official) == sorted(index["weight_map"])
    assert [native_key(name) for name in official] == list(model.state_dict())


def test_every_name_of_llada_goes_where_the_official_code_put_it():
    entries = parity.numbers("conversion")["language"]
    assert {entry["source"]: official_key(language_key(entry["source"])) for entry in entries} == {
        entry["source"]: entry["target"] for entry in entries
    }


@pytest.mark.parametrize(
    "key",
    [
        "model.transformer.blocks.0.att_proj.weight",
        "model.transformer.blocks.0.ff_proj.weight.extra",
        "model.transformer.blocks.x.ff_proj.weight",
        "model.transformer.block_groups.0.0.ff_proj.weight",
        "model.transformer.wpe.weight",
        "transformer.wte.weight",
        "model.layers.0.self_attn.q_proj.weight",
        "lm_head.weight",
    ],
)
def test_llada_has_no_other_names(key):
    assert language_key(key) is None


def test_the_output_of_a_block_is_not_the_head():
    assert language_key("model.transformer.ff_out.weight") == "lm_head.weight"
    assert (
        language_key("model.transformer.blocks.12.ff_out.weight")
        == "model.language_model.layers.12.mlp.down_proj.weight"
    )


@pytest.mark.parametrize("prefix", ["vision_model.", ""])
def test_every_name_of_siglip_goes_where_the_official_code_put_it(prefix):
    conversion = parity.numbers("conversion")
    for entry in conversion["vision"]:
        key = entry["source"].replace("vision_model.", prefix)
        assert official_key(vision_key(key, 3)) == entry["target"], key
    for source in conversion["vision_dropped"]:
        assert vision_key(source.replace("vision_model.", prefix), 3) == "", source


def test_layers_are_dropped_by_number_and_not_by_their_first_digit():
    assert vision_key("vision_model.encoder.layers.26.mlp.fc1.weight", 26) == ""
    kept = "encoder.layers.{}.mlp.fc1.weight"
    for number in (2, 25):
        assert vision_key(f"vision_model.{kept.format(number)}", 26) == f"model.vision_tower.{kept.format(number)}"


@pytest.mark.parametrize(
    "key",
    ["logit_scale_2", "vision_model.logit_bias", "vision_tower.embeddings.x", "encoder", "heads.x", "pre.head.x"],
)
def test_siglip_has_no_other_names(key):
    assert vision_key(key, 3) is None


def test_native_names_stay(tiny_model):
    names = list(tiny_model().state_dict())
    assert [native_key(name) for name in names] == names


def test_every_tensor_of_the_release_has_its_place(model):
    index = json.loads((parity.OFFICIAL / "model.safetensors.index.json").read_text())
    assert {native_key(key) for key in index["weight_map"]} == set(model.state_dict())


def test_official_names_load_beside_a_native_config(tmp_path, converted_folder):
    for path in parity.OFFICIAL.glob("model*"):
        (tmp_path / path.name).symlink_to(path)
    (tmp_path / "config.json").write_bytes((converted_folder / "config.json").read_bytes())
    official, info = LladaVForMaskedDiffusion.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values()), info
    converted = LladaVForMaskedDiffusion.from_pretrained(converted_folder)
    for (name, ours), theirs in zip(converted.state_dict().items(), official.state_dict().values(), strict=True):
        assert torch.equal(ours, theirs), name


def names_in(folder):
    with safe_open(folder / "model.safetensors", framework="pt") as handle:
        return set(handle.keys())


def test_saving_writes_native_names(tmp_path, tiny_model):
    model = tiny_model()
    model.save_pretrained(tmp_path)
    assert names_in(tmp_path) == set(model.state_dict())


def test_saving_after_loading_official_names_writes_native_names(tmp_path, model):
    model.save_pretrained(tmp_path)
    assert names_in(tmp_path) == set(model.state_dict())


def test_official_names_are_written_on_request_and_load_again(tmp_path, model):
    model.save_pretrained(tmp_path, save_original_format=True)
    index = json.loads((parity.OFFICIAL / "model.safetensors.index.json").read_text())
    assert names_in(tmp_path) == set(index["weight_map"])
    again, info = LladaVForMaskedDiffusion.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values()), info
    ids = torch.tensor([[126080, 1, 2, 3, 126336, 126336]])
    assert torch.equal(again(input_ids=ids).logits, model(input_ids=ids).logits)


def test_a_round_trip_keeps_logits_and_generation_settings(tmp_path, tiny_model):
    model = tiny_model()
    model.generation_config.max_new_tokens, model.generation_config.block_length = 24, 8
    model.generation_config.eos_token_id, model.generation_config.remasking = [2, 5], "random"
    model.save_pretrained(tmp_path)
    again, info = LladaVForMaskedDiffusion.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values()), info
    ids = torch.tensor([[1, 4, 5, 92, 92]])
    assert torch.equal(again(input_ids=ids).logits, model(input_ids=ids).logits)
    settings = again.generation_config
    assert type(settings).__name__ == "LladaVGenerationConfig"
    assert (settings.max_new_tokens, settings.block_length, settings.max_denoising_steps) == (24, 8, None)
    assert (settings.eos_token_id, settings.remasking) == ([2, 5], "random")
