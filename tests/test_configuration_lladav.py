"""Configurations are LLaDA-V 8B by default, refuse what does not fit together, and come back from a file."""

import pytest

from transformers_lladav import LladaVConfig, LladaVTextConfig


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"text_config": {"hidden_size": 30}}, "hidden_size=30 is not a multiple of num_attention_heads=32"),
        (
            {"text_config": {"num_key_value_heads": 5}},
            "num_attention_heads=32 is not a multiple of num_key_value_heads=5",
        ),
        ({"mask_token_id": 126464}, "mask_token_id=126464 is not in the vocabulary of 126464 tokens"),
        ({"image_token_id": -1}, "image_token_id=-1 is not in the vocabulary"),
        ({"output_vocab_size": 0}, r"output_vocab_size=0 must lie in 1..vocab_size=126464"),
        ({"output_vocab_size": 126465}, r"output_vocab_size=126465 must lie in 1..vocab_size=126464"),
        ({"image_grid_pinpoints": [[384, 100]]}, r"has \[384, 100\]; .* multiples of the tile size 384"),
        ({"image_grid_pinpoints": [[384]]}, r"image_grid_pinpoints has \[384\]"),
        ({"max_tiles": 0}, "max_tiles=0 must be at least 1"),
        ({"newline_position": "row"}, "newline_position"),
        ({"mask_token_id": "mask"}, "mask_token_id"),
    ],
)
def test_a_configuration_that_does_not_fit_together_is_refused(settings, message):
    with pytest.raises(Exception, match=message):
        LladaVConfig(**settings)


def test_the_default_configuration_is_llada_v_8b():
    config = LladaVConfig()
    text, vision = config.text_config, config.vision_config
    sizes = (text.hidden_size, text.num_hidden_layers, text.num_key_value_heads, text.head_dim, text.vocab_size)
    assert sizes == (4096, 32, 32, 128, 126464)
    assert text.rope_parameters["rope_theta"] == 500000.0
    assert (vision.hidden_size, vision.num_hidden_layers, vision.intermediate_size) == (1152, 26, 4304)
    assert config.patches_per_side == 27
    assert len(config.image_grid_pinpoints) == 36
    assert config.image_grid_pinpoints[:2] == [[384, 384], [768, 384]]


def test_a_configuration_survives_a_round_trip(tmp_path):
    config = LladaVConfig(text_config=LladaVTextConfig(num_key_value_heads=8), max_tiles=9, newline_position="frame")
    config.save_pretrained(tmp_path)
    loaded = LladaVConfig.from_pretrained(tmp_path)
    assert loaded.to_dict() == config.to_dict()
    assert loaded.text_config.num_key_value_heads == 8


def test_key_value_heads_and_output_vocabulary_follow_from_the_sizes():
    config = LladaVConfig(text_config={"vocab_size": 127000, "num_attention_heads": 16}, output_vocab_size=None)
    assert config.text_config.num_key_value_heads == 16
    assert config.text_config.head_dim == 256
    assert config.output_vocab_size == 127000


def test_pinpoints_of_two_configurations_are_not_shared():
    LladaVConfig().image_grid_pinpoints[0][0] = 1
    assert LladaVConfig().image_grid_pinpoints[0] == [384, 384]
