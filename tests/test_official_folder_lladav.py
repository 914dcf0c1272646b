"""Of an official folder's files shapes, tower and configuration are read, and damaged or hostile ones are refused."""

import json
import shutil

import pytest
from safetensors import safe_open
from transformers import SiglipConfig, SiglipVisionConfig

import parity
from transformers_lladav import official_folder_lladav
from transformers_lladav.checkpoint_keys_lladav import native_key
from transformers_lladav.official_folder_lladav import (
    OfficialCheckpointError,
    native_config,
    read_official,
    read_vision_config,
    stored_shapes,
)

SIGLIP = parity.FOLDER / "checkpoint-siglip"
FIRST = "model-00001-of-00002.safetensors"


def official_config():
    return json.loads((parity.OFFICIAL / "config.json").read_text())


def test_shapes_are_those_of_the_tensors():
    expected = {}
    for file in parity.OFFICIAL.glob("*.safetensors"):
        with safe_open(file, framework="pt") as handle:
            expected |= {native_key(name): handle.get_slice(name).get_shape() for name in handle.keys()}  # noqa: SIM118
    assert stored_shapes(parity.OFFICIAL) == expected
    assert stored_shapes(str(parity.OFFICIAL / "config.json")) == expected
    assert expected["model.vision_tower.embeddings.patch_embedding.weight"] == [32, 3, 14, 14]


def test_a_single_file_needs_no_index(tmp_path):
    shutil.copy(parity.OFFICIAL / FIRST, tmp_path / "model.safetensors")
    with safe_open(parity.OFFICIAL / FIRST, framework="pt") as handle:
        assert set(stored_shapes(tmp_path)) == {native_key(name) for name in handle.keys()}  # noqa: SIM118


def test_half_a_checkpoint_tells_nothing(tmp_path):
    for name in (FIRST, "model.safetensors.index.json"):
        shutil.copy(parity.OFFICIAL / name, tmp_path)
    assert stored_shapes(tmp_path) == {}
    assert stored_shapes("GSAI-ML/LLaDA-V") == stored_shapes(None) == {}


def test_no_source_is_not_the_current_folder(tmp_path, monkeypatch):
    shutil.copy(parity.OFFICIAL / FIRST, tmp_path / "model.safetensors")
    monkeypatch.chdir(tmp_path)
    assert stored_shapes(None) == {}


@pytest.mark.parametrize("name", ["../secret.safetensors", "/etc/passwd", "sub/model.safetensors", "..\\x"])
def test_an_index_may_not_leave_the_folder(name, tmp_path):
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"lm_head.weight": name}}))
    with pytest.raises(ValueError, match="which is not a file of its folder; it is refused"):
        stored_shapes(tmp_path)


@pytest.mark.parametrize("weight_map", [None, [], "model.safetensors"])
def test_an_index_without_a_map(weight_map, tmp_path):
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(ValueError, match="has no weight_map from tensor to file name"):
        stored_shapes(tmp_path)


@pytest.mark.parametrize("content", [b"", b"\xff" * 8, (1000).to_bytes(8, "little") + b'{"a": {}', b"\0" * 200])
def test_a_damaged_file_is_named(content, tmp_path):
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(ValueError, match=r"model\.safetensors is truncated or damaged"):
        stored_shapes(tmp_path)


def test_a_vision_config_may_come_in_any_form():
    whole = json.loads((SIGLIP / "config.json").read_text())
    forms = (
        SIGLIP,
        str(SIGLIP / "config.json"),
        whole,
        whole["vision_config"],
        SiglipConfig.from_pretrained(SIGLIP),
        SiglipVisionConfig.from_pretrained(SIGLIP),
        {"hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 64},
    )
    expected = native_config(official_config(), parity.OFFICIAL, SIGLIP)
    sizes = expected["vision_config"]
    assert (sizes["num_attention_heads"], sizes["num_hidden_layers"], sizes["intermediate_size"]) == (4, 3, 64)
    for form in forms:
        given = native_config(official_config(), parity.OFFICIAL, form)["vision_config"]
        assert {name: given[name] for name in SIZES} == {name: sizes[name] for name in SIZES}, form


SIZES = ("hidden_size", "intermediate_size", "num_attention_heads", "num_hidden_layers", "image_size", "patch_size")


def test_a_vision_config_that_is_none(tmp_path):
    (tmp_path / "config.json").write_text("[1]")
    (tmp_path / "broken.json").write_text("{")
    with pytest.raises(ValueError, match=r"config\.json holds a list, not an object"):
        read_vision_config(tmp_path)
    with pytest.raises(ValueError, match=r"broken\.json is no JSON"):
        read_vision_config(tmp_path / "broken.json")
    with pytest.raises(OSError, match="nowhere"):
        read_vision_config(tmp_path / "nowhere")
    with pytest.raises(TypeError, match=r"vision_config is a int; give a configuration, its content .* or the path"):
        read_vision_config(16)


def test_what_cannot_be_translated_is_an_error_that_auto_processor_lets_through():
    official = official_config() | {"mm_projector_type": "linear", "hidden_act": None, "hidden_size": 0}
    with pytest.raises(OfficialCheckpointError) as caught:
        native_config(official, "some/folder")
    assert not isinstance(caught.value, ValueError)
    for part in ("some/folder cannot be loaded", "mm_projector_type='linear'", "hidden_size=0"):
        assert part in str(caught.value)


def test_the_type_of_the_weights_is_carried_over():
    official = official_config() | {"torch_dtype": "float16", "_commit_hash": "abc"}
    native = native_config(official, None, SIGLIP)
    assert (native["dtype"], native["_commit_hash"], native["model_type"]) == ("float16", "abc", "lladav")
    del official["torch_dtype"]
    assert "dtype" not in native_config(official, None, SIGLIP)


def test_only_official_folders_without_a_processor_are_official(tmp_path, converted_folder):
    assert read_official(parity.OFFICIAL) == official_config()
    assert read_official(str(parity.OFFICIAL)) == official_config()
    assert read_official(converted_folder) is None
    assert read_official(converted_folder / "processor_config.json") is None
    assert read_official(tmp_path) is None
    shutil.copy(parity.OFFICIAL / "config.json", tmp_path)
    assert read_official(tmp_path) == official_config()
    assert read_official(tmp_path.parent, subfolder=tmp_path.name) == official_config()
    (tmp_path / "processor_config.json").write_text("{}")
    assert read_official(tmp_path) is None


def test_a_native_checkpoint_costs_one_look(converted_folder, monkeypatch):
    asked = []

    def count(source, name, **options):
        asked.append(name)
        return look(source, name, **options)

    look = official_folder_lladav.cached_file
    monkeypatch.setattr(official_folder_lladav, "cached_file", count)
    read_official(converted_folder)
    assert asked == ["processor_config.json"]
