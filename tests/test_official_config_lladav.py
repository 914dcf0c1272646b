"""Official configurations become ours field by field, sizes of the tower come from tensors, the rest is refused."""

import json

import pytest

import parity
from transformers_lladav import LladaVConfig
from transformers_lladav.official_config_lladav import (
    config_problems,
    read_pinpoints,
    read_tiling,
    translate_config,
    translate_image_settings,
    vision_sizes,
)
from transformers_lladav.tiling_lladav import DEFAULT_PINPOINTS

CONV = "model.vision_tower.embeddings.patch_embedding.weight"
POSITIONS = "model.vision_tower.embeddings.position_embedding.weight"
FC1 = "model.vision_tower.encoder.layers.{}.mlp.fc1.weight"


@pytest.fixture
def official():
    return json.loads((parity.OFFICIAL / "config.json").read_text())


def tower_shapes(hidden=1152, layers=26, positions=729, mlp=4304, patch=14):
    shapes = {CONV: (hidden, 3, patch, patch), POSITIONS: (positions, hidden)}
    return shapes | {FC1.format(layer): (mlp, hidden) for layer in range(layers)}


def test_the_release_translates(official):
    siglip = json.loads((parity.FOLDER / "checkpoint-siglip" / "config.json").read_text())
    config = LladaVConfig(**translate_config(official, tower_shapes(32, 3, mlp=64), siglip))
    text, vision = config.text_config, config.vision_config
    assert (text.hidden_size, text.intermediate_size, text.num_hidden_layers, text.vocab_size) == (32, 64, 3, 126464)
    assert (text.num_attention_heads, text.num_key_value_heads, text.max_position_embeddings) == (4, 4, 16384)
    assert text.rope_parameters == {"rope_type": "default", "rope_theta": 500000.0}
    assert (text.bos_token_id, text.eos_token_id, text.pad_token_id) == (126080, 126348, 126081)
    assert (vision.hidden_size, vision.num_attention_heads, vision.num_hidden_layers) == (32, 4, 3)
    assert (vision.image_size, vision.patch_size, vision.vision_use_head) == (384, 14, False)
    assert (config.max_tiles, config.newline_position, config.image_token_id) == (4, "grid", 126349)
    assert config.image_grid_pinpoints == DEFAULT_PINPOINTS


def test_other_values_are_carried_over(official):
    official |= {"num_key_value_heads": 2, "rope_theta": 1e4, "rms_norm_eps": 1e-6, "mm_newline_position": "one_token"}
    official |= {"image_aspect_ratio": "anyres_max_9", "image_grid_pinpoints": "(1x1),...,(2x3)"}
    config = LladaVConfig(**translate_config(official, tower_shapes()))
    assert config.text_config.num_key_value_heads == 2
    assert config.text_config.rope_parameters["rope_theta"] == 1e4
    assert config.text_config.rms_norm_eps == 1e-6
    assert (config.newline_position, config.max_tiles) == ("one_token", 9)
    assert config.image_grid_pinpoints == [[384, 384], [768, 384], [1152, 384], [384, 768], [768, 768], [1152, 768]]


def test_pinpoints_are_turned_and_keep_their_order():
    assert read_pinpoints([[384, 768], [1152, 384]], 384) == [[768, 384], [384, 1152]]
    assert read_pinpoints("[[384, 768], [1152, 384]]", 384) == [[768, 384], [384, 1152]]
    assert read_pinpoints("(1x1),...,(6x6)", 384) == DEFAULT_PINPOINTS
    with pytest.raises(ValueError, match=r"image_grid_pinpoints=many; give \[\[width, height\]"):
        read_pinpoints("many", 384)


@pytest.mark.parametrize("backwards", ["(6x6),...,(1x1)", "(1x6),...,(6x1)", "(0x1),...,(2x2)"])
def test_a_range_without_canvases_does_not_turn_tiling_off(backwards):
    with pytest.raises(ValueError, match=r"image_grid_pinpoints=.*; a range begins at \(1x1\) or more and goes up"):
        read_pinpoints(backwards, 384)


def test_canvases_are_whole_numbers_of_pixels():
    for pixels in (384.5, "384"):
        with pytest.raises(ValueError, match=r"image_grid_pinpoints=.*; give \[\[width, height\]"):
            vision_sizes(tower_shapes(), pinpoints=[[384, pixels]])
    assert vision_sizes(tower_shapes(), pinpoints=[[384.0, 768.0]])["image_size"] == 384


def test_tensors_without_entries_tell_no_sizes():
    shapes = tower_shapes() | {CONV: (1152, 3, 0, 0)}
    assert vision_sizes(shapes)["patch_size"] == 14


def test_padded_pictures_have_no_canvases():
    assert read_tiling({"image_aspect_ratio": "pad"}, 384) == {"image_grid_pinpoints": []}


def test_every_unsupported_field_is_named(official):
    official |= {"mm_projector_type": "linear", "rope_scaling": {"type": "linear"}, "hidden_size": "32"}
    official["image_aspect_ratio"] = "square"
    problems = config_problems(official)
    assert len(problems) == 4
    for field in ("mm_projector_type='linear'", "rope_scaling=", "hidden_size='32'", "image_aspect_ratio='square'"):
        assert any(field in problem for problem in problems), field
    with pytest.raises(ValueError, match="mm_projector_type='linear'; supported: 'mlp2x_gelu'"):
        translate_config(official)


def test_another_model_type_is_the_only_problem_reported():
    assert config_problems({"model_type": "llama"}) == [
        "config.json has model_type='llama'; an official LLaDA-V checkpoint has 'llava_llada'"
    ]


@pytest.mark.parametrize("said", [{"mm_hidden_size": 1152}, {"mm_hidden_size": None}])
def test_without_tensors_the_tower_is_siglip2(official, said):
    config = LladaVConfig(**translate_config(official | said))
    assert config.vision_config.to_dict() == LladaVConfig().vision_config.to_dict()


def test_without_tensors_another_tower_is_not_guessed(official):
    with pytest.raises(ValueError, match=r"mm_hidden_size=32, so .* not SigLIP2-so400m \(1152\).*vision_config="):
        translate_config(official)
    sizes = translate_config(official, vision={"hidden_size": 32, "num_attention_heads": 4})["vision_config"]
    assert (sizes["hidden_size"], sizes["num_attention_heads"], sizes["num_hidden_layers"]) == (32, 4, 26)


def test_the_image_processor_needs_no_heads(official):
    settings = translate_image_settings(official, tower_shapes(32, 3, positions=256, patch=16))
    assert (settings["size"], settings["patch_size"]) == ({"height": 256, "width": 256}, 16)
    assert (settings["max_tiles"], settings["newline_position"]) == (4, "grid")
    assert settings["image_grid_pinpoints"] == DEFAULT_PINPOINTS
    del official["image_grid_pinpoints"]
    assert "image_grid_pinpoints" not in translate_image_settings(official, tower_shapes())


def test_sizes_are_read_from_shapes():
    sizes = vision_sizes(tower_shapes(layers=5, positions=256, mlp=2000, patch=16))
    assert {name: sizes[name] for name in ("hidden_size", "intermediate_size", "num_hidden_layers", "patch_size")} == {
        "hidden_size": 1152, "intermediate_size": 2000, "num_hidden_layers": 5, "patch_size": 16
    }  # fmt: skip
    assert (sizes["image_size"], sizes["num_attention_heads"]) == (256, 16)


def test_canvases_tell_pixels_that_positions_do_not():
    assert vision_sizes(tower_shapes())["image_size"] == 384
    assert vision_sizes(tower_shapes(), pinpoints=[[380, 760], [760, 760]])["image_size"] == 380


def test_heads_of_other_towers_must_be_given():
    with pytest.raises(ValueError, match=r"hidden_size=32, and its number of attention heads.*--vision-config"):
        vision_sizes(tower_shapes(32))
    assert vision_sizes(tower_shapes(32), {"hidden_size": 32, "num_attention_heads": 2})["num_attention_heads"] == 2


def test_what_a_vision_config_leaves_out_is_read_from_the_shapes():
    sizes = vision_sizes(tower_shapes(768, 11, 196, 3072, 16), {"num_attention_heads": 12})
    assert sizes["hidden_size"] == 768
    assert (sizes["intermediate_size"], sizes["num_hidden_layers"], sizes["image_size"]) == (3072, 11, 224)


def test_what_a_file_of_transformers_leaves_out_has_its_default():
    base = {"vision_config": {"model_type": "siglip_vision_model"}}
    sizes = vision_sizes(tower_shapes(768, 11, 196, 3072, 16), base)
    assert (sizes["num_attention_heads"], sizes["image_size"], sizes["num_hidden_layers"]) == (12, 224, 11)
    assert vision_sizes({}, base)["num_hidden_layers"] == 11


def test_heads_that_were_left_out_by_hand_are_not_guessed():
    with pytest.raises(ValueError, match="hidden_size=768, and its number of attention heads"):
        vision_sizes(tower_shapes(768), {"image_size": 384})


@pytest.mark.parametrize(
    ("field", "value"), [("hidden_size", 768), ("intermediate_size", 3072), ("patch_size", 16), ("num_channels", 1)]
)
def test_a_vision_config_of_another_tower_is_refused(field, value):
    with pytest.raises(ValueError, match=rf"tower has {field}=\d+, but the vision configuration has {value}; is this"):
        vision_sizes(tower_shapes(), {field: value})


@pytest.mark.parametrize(("stored", "whole"), [(3, 4), (3, 3), (0, 4)])
def test_the_dropped_layer_is_not_counted(stored, whole):
    assert vision_sizes(tower_shapes(layers=stored), {"num_hidden_layers": whole})["num_hidden_layers"] == 3


def test_a_vision_config_of_another_depth_is_refused():
    with pytest.raises(ValueError, match="has 3 vision layers, but the vision configuration has 27"):
        vision_sizes(tower_shapes(layers=3), {"num_hidden_layers": 27})
