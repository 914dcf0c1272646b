"""An official checkpoint gets the processor that its configuration asks for, and other tokenizers are refused."""

import json
import shutil
from pathlib import Path

import pytest
from transformers import AutoTokenizer

import parity
from transformers_lladav import LladaVProcessor
from transformers_lladav.official_folder_lladav import OfficialCheckpointError
from transformers_lladav.official_processor_lladav import OFFICIAL_IDS, load_parts, tokenizer_problems


@pytest.fixture
def source(tmp_path):
    """An official folder without weights, to change."""
    folder = tmp_path / "official"
    folder.mkdir()
    for path in parity.OFFICIAL.glob("*.json"):
        if "safetensors" not in path.name:
            shutil.copy(path, folder)
    change_config(folder, mm_hidden_size=1152)
    return folder


def change_config(folder: Path, **fields):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def test_the_ids_are_those_of_the_release():
    assert OFFICIAL_IDS == {
        "<|startoftext|>": 126080,
        "<|endoftext|>": 126081,
        "<|eot_id|>": 126348,
        "<|mdm_mask|>": 126336,
        "<|start_header_id|>": 126346,
        "<|end_header_id|>": 126347,
    }


def test_a_native_checkpoint_has_no_parts_to_make(converted_folder):
    assert load_parts(converted_folder) is None


def test_picture_settings_come_from_the_official_configuration(source):
    change_config(source, image_aspect_ratio="anyres_max_9", image_grid_pinpoints="(1x1),...,(2x3)")
    change_config(source, mm_newline_position="frame")
    made = LladaVProcessor.from_pretrained(source).image_processor
    assert (made.max_tiles, made.newline_position, made.patch_size) == (9, "frame", 14)
    assert made.image_grid_pinpoints == [[384, 384], [768, 384], [1152, 384], [384, 768], [768, 768], [1152, 768]]
    change_config(source, image_aspect_ratio="pad")
    assert LladaVProcessor.from_pretrained(source).image_processor.image_grid_pinpoints == []


def test_the_tile_is_that_of_the_tower(source):
    change_config(source, mm_hidden_size=768, image_grid_pinpoints="(1x1),...,(2x1)")
    with pytest.raises(OfficialCheckpointError, match=r"mm_hidden_size=768, so .* is not SigLIP2-so400m"):
        LladaVProcessor.from_pretrained(source)
    tower = {"hidden_size": 768, "image_size": 224, "patch_size": 16}
    made = LladaVProcessor.from_pretrained(source, vision_config=tower).image_processor
    assert (made.size["height"], made.size["width"], made.patch_size) == (224, 224, 16)
    assert made.image_grid_pinpoints == [[224, 224], [224, 448]]


def test_settings_that_were_passed_win(source):
    made = LladaVProcessor.from_pretrained(source, max_tiles=2, image_token="<picture>", padding_side="left")
    assert made.image_processor.max_tiles == 2
    assert (made.image_token, made.image_token_id) == ("<picture>", 126349)
    assert made.tokenizer.padding_side == "left"
    assert "max_tiles" not in made.tokenizer.init_kwargs


def test_all_ids_that_differ_are_in_one_error(source):
    path = source / "tokenizer.json"
    path.write_text(path.read_text().replace("<|mdm_mask|>", "<|was_mask|>").replace("<|eot_id|>", "<|was_eot|>"))
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        (source / name).unlink()
    with pytest.raises(OfficialCheckpointError) as caught:
        LladaVProcessor.from_pretrained(source)
    message = str(caught.value)
    assert "- <|mdm_mask|> is missing, the model's configuration says 126336" in message
    assert "- <|eot_id|> is missing, the model's configuration says 126348" in message
    assert "conversion/convert_checkpoint.py, which takes the ids from the tokenizer" in message
    assert message.count("\n- ") == 2


def test_an_extended_tokenizer_is_refused():
    tokenizer = AutoTokenizer.from_pretrained(parity.OFFICIAL)
    assert tokenizer_problems(tokenizer) == []
    tokenizer.add_tokens(["<more>"])
    assert tokenizer_problems(tokenizer) == [
        "it has 126350 entries, the model's configuration says 126349 and puts <image> and <video> at 126349 and "
        "126350"
    ]
