"""A folder that is published holds weights, configuration, processor and all code that it needs, to the byte."""

import json
import os

import torch

from transformers_lladav import LladaVForMaskedDiffusion, LladaVImageProcessor, LladaVProcessor
from transformers_lladav.publishing import AUTO_MAP, ENTRY_MODULES, code_files, save_checkpoint, write_code_files


def test_code_is_what_the_entry_modules_import():
    names = {path.stem for path in code_files()}
    assert set(ENTRY_MODULES) <= names
    assert {"generation_lladav", "denoising_lladav", "tiling_lladav", "checkpoint_keys_lladav"} <= names
    assert all(name.endswith("_lladav") for name in names)
    assert {"official_config_lladav", "official_folder_lladav", "official_processor_lladav"} <= names


def test_code_is_copied_as_it_is(tmp_path):
    written = write_code_files(tmp_path)
    assert [path.name for path in written] == sorted(os.listdir(tmp_path))
    assert all(copy.read_bytes() == path.read_bytes() for copy, path in zip(written, code_files(), strict=True))


def test_a_checkpoint_is_complete(tmp_path, tiny_model, official_tokenizer):
    model = tiny_model()
    model.generation_config.max_new_tokens = 16
    folder = tmp_path / "checkpoint"
    save_checkpoint(model, LladaVProcessor(LladaVImageProcessor(), official_tokenizer), folder)
    config = json.loads((folder / "config.json").read_text())
    assert config["auto_map"] == AUTO_MAP
    assert config["architectures"] == ["LladaVForMaskedDiffusion"]
    assert getattr(model.config, "auto_map", None) is None
    processor = json.loads((folder / "processor_config.json").read_text())
    assert processor["auto_map"] == {"AutoProcessor": "processing_lladav.LladaVProcessor"}
    assert processor["image_processor"]["auto_map"] == {
        "AutoImageProcessor": "image_processing_lladav.LladaVImageProcessor",
        "AutoProcessor": "processing_lladav.LladaVProcessor",
    }
    assert {path.name for path in code_files()} <= set(os.listdir(folder))
    again, info = LladaVForMaskedDiffusion.from_pretrained(folder, output_loading_info=True)
    assert not any(info.values()), info
    assert again.generation_config.max_new_tokens == 16
    for name, tensor in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name
    assert LladaVProcessor.from_pretrained(folder).image_token_id == 126349
