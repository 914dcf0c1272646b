"""The key table, and the loading of folders whose tensors have official names."""

import json

import pytest
import torch
from safetensors import safe_open

import parity
from transformers_lladav import LladaVForMaskedDiffusion
from transformers_lladav.checkpoint_keys_lladav import native_key

TOWER = "model.vision_tower.vision_tower.vision_model."


@pytest.mark.parametrize(
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
def test_official_names_become_native(official, native):
    assert native_key(official) == native


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
