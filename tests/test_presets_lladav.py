"""Presets have the numbers of the paper, fit together, do what they say, and are found by name."""

import re

import pytest

from transformers_lladav import LladaVGenerationConfig
from transformers_lladav.commit_rules_lladav import ConfidenceThreshold, EntropyBound, FixedSchedule
from transformers_lladav.generation_configuration_lladav import DEFAULTS
from transformers_lladav.presets_lladav import PRESETS, find_preset

# LLaDA-V, arXiv:2505.16933, appendix: max_new_tokens, block_length, steps, tag.
PAPER = {
    **dict.fromkeys(
        ("mmmu", "mmmu_pro", "mmstar", "ai2d", "seedbench", "mmbench", "muirbench", "videomme", "mlvu", "mme",
         "realworldqa"),
        (2, 2, 2, "/no_think"),
    ),
    "chartqa": (16, 16, 16, "/no_think"),
    "docvqa": (32, 32, 16, "/no_think"),
    "infovqa": (32, 32, 16, "/no_think"),
    "mathvista": (96, 96, 48, "/think"),
    "mathverse": (64, 64, 32, "/think"),
}  # fmt: skip


def test_there_are_three_speeds_and_the_tasks_of_the_paper():
    assert set(PRESETS) == {"exact", "balanced", "fast", *PAPER}


@pytest.mark.parametrize("name", PAPER)
def test_lengths_and_tags_are_those_of_the_paper(name):
    tokens, block, steps, tag = PAPER[name]
    preset = find_preset(name)
    lengths = {"max_new_tokens": tokens, "block_length": block, "max_denoising_steps": steps}
    stops = {"stop_strings": ["\n"]} if name == "chartqa" else {}
    assert {key: value for key, value in preset.settings.items() if value is not None} == {
        **lengths,
        **stops,
        "temperature": 0.0,
        "guidance_scale": 1.0,
        "remasking": "low_confidence",
        "prompt_refresh_interval": 1,
        "use_cache": "prompt",
    }
    assert preset.tag == tag
    config = LladaVGenerationConfig(**preset.settings)
    assert config.schedule() == (tokens, block, steps)
    assert config.commit_rule() == FixedSchedule()
    assert (config.temperature, config.guidance_scale) == (0.0, 1.0)


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_is_valid_known_and_described(name):
    preset = PRESETS[name]
    config = LladaVGenerationConfig(**preset.settings)
    canvas, block, steps = config.schedule()
    assert canvas % block == 0
    assert 1 <= steps <= block
    assert set(preset.settings) <= set(DEFAULTS)
    assert preset.description
    assert "\n" not in preset.description
    assert preset.tag in (None, "/think", "/no_think")


@pytest.mark.parametrize(
    ("name", "rule", "interval"),
    [
        ("exact", FixedSchedule(), 1),
        ("balanced", ConfidenceThreshold(0.9), 2),
        ("fast", ConfidenceThreshold(0.9), None),
    ],
)
def test_a_speed_sets_its_rule_whatever_was_set(name, rule, interval):
    other = {"prompt_refresh_interval": 7}
    for before in ({}, {"factor": 1.0}, {"entropy_bound": 0.5, **other}, {"sampler_config": EntropyBound(0.5)}):
        config = LladaVGenerationConfig(max_new_tokens=64, **before)
        config.change(find_preset(name).settings)
        config.validate()
        assert config.commit_rule() == rule
        assert config.prompt_refresh_interval == interval
        assert config.max_new_tokens == 64


@pytest.mark.parametrize("name", ["exact", *PAPER])
def test_nothing_that_was_set_makes_an_exact_preset_less_exact(name):
    config = LladaVGenerationConfig(
        stability_threshold=2,
        confidence_threshold=0.1,
        temperature=1.0,
        top_k=5,
        top_p=0.5,
        no_repeat_ngram_size=3,
        remasking="margin",
        threshold=0.5,
        prompt_refresh_interval=8,
        use_cache="dual",
    )
    config.change(find_preset(name).settings)
    plain = LladaVGenerationConfig(**find_preset(name).settings)
    assert config.to_dict() == plain.to_dict()


def test_using_a_preset_does_not_change_it():
    config = LladaVGenerationConfig()
    config.change(find_preset("chartqa").settings)
    config.validate()
    config.stop_strings.append("END")
    assert find_preset("chartqa").settings["stop_strings"] == ["\n"]


def test_capitals_do_not_matter():
    assert find_preset("MathVista") is PRESETS["mathvista"]
    assert find_preset("EXACT") is PRESETS["exact"]


@pytest.mark.parametrize(
    ("name", "choices"),
    [
        ("mmmu-pro", "mmmu_pro, mmmu"),
        ("BALANCE", "balanced"),
        ("qqqq", ", ".join(PRESETS)),
        ("", ", ".join(PRESETS)),
    ],
)
def test_an_unknown_name_is_refused_with_the_nearest(name, choices):
    message = f"preset={name!r} is not known; choose one of {choices} (see `lladav presets`)"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        find_preset(name)
