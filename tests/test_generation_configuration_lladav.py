"""Settings of the loop: what is refused and how it is said, aliases, and the JSON file."""

import json
import re

import pytest
from transformers import GenerationConfig

from transformers_lladav import LladaVGenerationConfig
from transformers_lladav.generation_configuration_lladav import explain_unknown, resolve_aliases


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens=0 must be a whole number of at least 1"),
        ({"max_new_tokens": -5}, "max_new_tokens=-5 must be a whole number of at least 1"),
        ({"max_new_tokens": 2.5}, "max_new_tokens=2.5 must be a whole number of at least 1"),
        ({"max_new_tokens": True}, "max_new_tokens=True must be a whole number of at least 1"),
        ({"block_length": "8"}, "block_length='8' must be a whole number of at least 1"),
        ({"max_denoising_steps": 0}, "max_denoising_steps=0 must be a whole number of at least 1"),
        ({"temperature": -0.1}, "temperature=-0.1 must be a number of at least 0"),
        ({"temperature": float("nan")}, "temperature=nan must be a number of at least 0"),
        ({"temperature": "hot"}, "temperature='hot' must be a number of at least 0"),
        ({"temperature": None}, "temperature=None must be a number of at least 0"),
        ({"guidance_scale": -1}, "guidance_scale=-1 must be a number of at least 0"),
        ({"remasking": "entropy"}, "remasking='entropy' is not known; choose one of low_confidence, random"),
        ({"stop_strings": [""]}, "stop_strings=[''] must be non-empty strings"),
        ({"stop_strings": [3]}, "stop_strings=[3] must be non-empty strings"),
        ({"block_lenght": 8}, "generate() does not take 'block_lenght'; did you mean 'block_length'?"),
        ({"temprature": 1.0}, "generate() does not take 'temprature'; did you mean 'temperature'?"),
        ({"num_beams": 4}, "generate() does not take 'num_beams': a denoising loop has no beams"),
        ({"do_sample": True}, "generate() does not take 'do_sample': sampling is on when temperature > 0"),
        ({"max_length": 20}, "generate() does not take 'max_length': give max_new_tokens"),
        ({"xyzzy": 1}, "generate() does not take 'xyzzy'"),
    ],
)
def test_a_bad_setting_is_refused_with_value_and_rule(settings, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        LladaVGenerationConfig(**settings)


def test_every_unknown_setting_is_named():
    with pytest.raises(ValueError, match=r"'num_beams': .*; generate\(\) does not take 'temprature'; did you mean"):
        LladaVGenerationConfig(temprature=1.0, num_beams=2)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"max_new_tokens": 20, "block_length": 8},
            "max_new_tokens=20 is not a multiple of block_length=8; pass max_new_tokens=24",
        ),
        (
            {"max_new_tokens": 32, "block_length": 8, "max_denoising_steps": 6},
            "max_denoising_steps=6 is not a multiple of the 4 blocks (max_new_tokens / block_length); "
            "pass max_denoising_steps=8",
        ),
        (
            {"max_new_tokens": 8, "max_denoising_steps": 9},
            "max_denoising_steps=9 is more than max_new_tokens=8: a step commits at least one token; "
            "pass max_denoising_steps=8 or less",
        ),
    ],
)
def test_lengths_that_do_not_fit_together_are_refused_with_one_that_does(settings, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        LladaVGenerationConfig(**settings).schedule()


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, (128, 128, 128)),
        ({"max_new_tokens": 32}, (32, 32, 32)),
        ({"max_new_tokens": 32, "block_length": 8}, (32, 8, 8)),
        ({"max_new_tokens": 32, "block_length": 8, "max_denoising_steps": 16}, (32, 8, 4)),
        ({"max_new_tokens": 8, "block_length": 1}, (8, 1, 1)),
    ],
)
def test_lengths_resolve_to_canvas_block_and_steps_per_block(settings, expected):
    assert LladaVGenerationConfig(**settings).schedule() == expected


def test_official_names_translate():
    official = {"steps": 16, "gen_length": 32, "cfg_scale": 1.5, "stopping_criteria": ["\n"], "temperature": 0.5}
    assert resolve_aliases(official) == {
        "max_denoising_steps": 16,
        "max_new_tokens": 32,
        "guidance_scale": 2.5,
        "stop_strings": ["\n"],
        "temperature": 0.5,
    }


def test_an_alias_may_repeat_its_name_but_not_contradict_it():
    assert resolve_aliases({"steps": 8, "max_denoising_steps": 8}) == {"max_denoising_steps": 8}
    assert resolve_aliases({"cfg_scale": None, "guidance_scale": 2.0}) == {"guidance_scale": 2.0}
    for options, message in (
        ({"steps": 8, "max_denoising_steps": 4}, "steps=8 and max_denoising_steps=4 disagree; pass one of them"),
        ({"gen_length": 8, "max_new_tokens": 4}, "gen_length=8 and max_new_tokens=4 disagree"),
        ({"cfg_scale": 1.0, "guidance_scale": 1.0}, "cfg_scale=1.0 and guidance_scale=1.0 disagree"),
        ({"stopping_criteria": ["a"], "stop_strings": ["b"]}, "stopping_criteria=['a'] and stop_strings=['b']"),
    ):
        with pytest.raises(ValueError, match=re.escape(message)):
            resolve_aliases(options)


def test_a_single_stop_string_becomes_a_list():
    assert LladaVGenerationConfig(stop_strings="\n").stop_strings == ["\n"]


def test_stop_tokens_are_a_list():
    assert LladaVGenerationConfig().stop_token_ids == []
    assert LladaVGenerationConfig(eos_token_id=7).stop_token_ids == [7]
    assert LladaVGenerationConfig(eos_token_id=[7, 8]).stop_token_ids == [7, 8]


def test_settings_survive_the_json_file(tmp_path):
    settings = {
        "max_new_tokens": 64,
        "block_length": 32,
        "max_denoising_steps": 16,
        "temperature": 0.7,
        "guidance_scale": 1.5,
        "remasking": "random",
        "stop_strings": ["\n", "END"],
        "eos_token_id": [126348, 126081],
        "mask_token_id": 126336,
        "pad_token_id": 126081,
    }
    LladaVGenerationConfig(**settings).save_pretrained(tmp_path)
    stored = json.loads((tmp_path / "generation_config.json").read_text())
    loaded = LladaVGenerationConfig.from_pretrained(tmp_path)
    for name, value in settings.items():
        assert stored[name] == value
        assert getattr(loaded, name) == value
    assert loaded.schedule() == (64, 32, 8)
    assert loaded == LladaVGenerationConfig(**settings)


def test_a_file_with_an_unknown_key_is_refused(tmp_path):
    (tmp_path / "generation_config.json").write_text(json.dumps({"blocklength": 8}))
    with pytest.raises(ValueError, match="'blocklength'; did you mean 'block_length'"):
        LladaVGenerationConfig.from_pretrained(tmp_path)


def test_what_belongs_to_autoregressive_generation_is_not_offered():
    with pytest.raises(NotImplementedError, match="not derived from a model configuration"):
        LladaVGenerationConfig.from_model_config(None)
    with pytest.raises(NotImplementedError, match="no generation mode"):
        LladaVGenerationConfig().get_generation_mode()
    assert isinstance(LladaVGenerationConfig(), GenerationConfig)


def test_a_suggestion_is_only_made_where_a_name_is_close():
    known = LladaVGenerationConfig.names()
    assert explain_unknown("gen_lenght", known) == "generate() does not take 'gen_lenght'; did you mean 'gen_length'?"
    assert explain_unknown("q", known) == "generate() does not take 'q'"
