"""Settings of the loop are refused with value and rule, official names translate, and the JSON file keeps all."""

import json
import re

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from transformers import GenerationConfig

from transformers_lladav import LladaVGenerationConfig
from transformers_lladav.commit_rules_lladav import (
    ConfidenceFactor,
    ConfidenceThreshold,
    EntropyBound,
    FixedSchedule,
    commits_per_step,
)
from transformers_lladav.generation_configuration_lladav import (
    ALIASES,
    DEFAULTS,
    HINTS,
    explain_unknown,
    resolve_aliases,
)
from transformers_lladav.sampling_lladav import SamplingSettings


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
        ({"temperature": float("inf")}, "temperature=inf must be finite"),
        ({"guidance_scale": float("inf")}, "guidance_scale=inf must be finite"),
        (
            {"remasking": "entropie"},
            "remasking='entropie' is not known; choose one of low_confidence, random, margin, entropy",
        ),
        ({"top_k": -1, "temperature": 1.0}, "top_k=-1 must be a whole number of at least 1"),
        ({"top_k": 2.0, "temperature": 1.0}, "top_k=2.0 must be a whole number of at least 1"),
        ({"top_p": 0, "temperature": 1.0}, "top_p=0 must be a number above 0 and at most 1"),
        ({"top_p": 1.5, "temperature": 1.0}, "top_p=1.5 must be a number above 0 and at most 1"),
        ({"top_p": True, "temperature": 1.0}, "top_p=True must be a number above 0 and at most 1"),
        ({"confidence_threshold": 0.0}, "confidence_threshold=0.0 must be a number above 0"),
        ({"confidence_threshold": "low"}, "confidence_threshold='low' must be a number above 0"),
        ({"stability_threshold": -1}, "stability_threshold=-1 must be a whole number of at least 0"),
        ({"no_repeat_ngram_size": False}, "no_repeat_ngram_size=False must be a whole number of at least 1"),
        ({"threshold": 1.5}, "threshold=1.5 must be a number from 0 to 1"),
        ({"factor": 0}, "factor=0 must be a number above 0"),
        ({"entropy_bound": -1.0}, "entropy_bound=-1.0 must be a number above 0"),
        ({"stop_strings": [""]}, "stop_strings=[''] must be non-empty strings"),
        ({"stop_strings": [3]}, "stop_strings=[3] must be non-empty strings"),
        ({"stop_strings": 3}, "stop_strings=3 must be non-empty strings"),
        ({"stop_strings": ""}, "stop_strings=[''] must be non-empty strings"),
        ({"prompt_refresh_interval": 0}, "prompt_refresh_interval=0 must be a whole number of at least 1"),
        ({"prompt_refresh_interval": 2.0}, "prompt_refresh_interval=2.0 must be a whole number of at least 1"),
        ({"use_cache": "static"}, "use_cache='static' is not known; choose one of prompt, dual, auto"),
        ({"block_lenght": 8}, "generate() does not take 'block_lenght'; did you mean 'block_length'?"),
        ({"temprature": 1.0}, "generate() does not take 'temprature'; did you mean 'temperature'?"),
        ({"num_beams": 4}, "generate() does not take 'num_beams': a denoising loop has no beams"),
        ({"do_sample": True}, "generate() does not take 'do_sample': sampling is on when temperature > 0"),
        ({"max_length": 20}, "generate() does not take 'max_length': give max_new_tokens"),
        ({"xyzzy": 1}, "generate() does not take 'xyzzy'"),
        ({"treshold": 0.5}, "generate() does not take 'treshold'; did you mean 'threshold'?"),
    ],
)
def test_a_bad_setting_is_refused_with_value_and_rule(settings, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        LladaVGenerationConfig(**settings)


@pytest.mark.parametrize("name", HINTS)
def test_what_autoregressive_generation_knows_is_refused_with_the_way_here(name):
    with pytest.raises(ValueError, match=f"^{re.escape(f'generate() does not take {name!r}: {HINTS[name]}')}$"):
        LladaVGenerationConfig(**{name: 1})


class Rule:
    """A commit rule of a user, with nothing but what is needed."""

    def select(self, offer):
        return offer.competing


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"top_k": 5},
            "top_k=5 needs temperature > 0: at 0 the likeliest token is taken; pass temperature=1.0, or leave top_k "
            "out",
        ),
        (
            {"top_p": 0.9, "temperature": 0},
            "top_p=0.9 needs temperature > 0: at 0 the likeliest token is taken; pass temperature=1.0, or leave top_p "
            "out",
        ),
        (
            {"threshold": 0.9, "factor": 1.0},
            "threshold and factor are different rules for what a step writes; give one of them",
        ),
        (
            {"entropy_bound": 0.9, "sampler_config": FixedSchedule()},
            "entropy_bound and sampler_config are different rules for what a step writes; give one of them",
        ),
        (
            {"sampler_config": 0.9},
            "sampler_config=0.9 is no commit rule; give one such as ConfidenceThreshold(0.9)",
        ),
        (
            {"sampler_config": Rule},
            f"sampler_config={Rule!r} is no commit rule; give one such as ConfidenceThreshold(0.9)",
        ),
        (
            {"sampler_config": {"_cls_name": "Rule"}},
            "sampler_config has _cls_name='Rule'; choose one of FixedSchedule, ConfidenceThreshold, ConfidenceFactor, "
            "EntropyBound",
        ),
        (
            {"sampler_config": {"_cls_name": []}},
            "sampler_config has _cls_name=[]; choose one of FixedSchedule, ConfidenceThreshold, ConfidenceFactor, "
            "EntropyBound",
        ),
        (
            {"use_cache": "dual"},
            'use_cache="dual" remembers nothing with prompt_refresh_interval=1; pass prompt_refresh_interval=8, or '
            "None for a single whole pass",
        ),
        (
            {"use_cache": False, "prompt_refresh_interval": 4},
            "use_cache=False and prompt_refresh_interval=4 disagree; pass prompt_refresh_interval=1 to remember "
            "nothing",
        ),
        (
            {"threshold": 0.9, "remasking": "random"},
            "threshold does not go with remasking='random'; it needs low_confidence or margin",
        ),
        (
            {"factor": 1.0, "remasking": "margin"},
            "factor does not go with remasking='margin'; it needs low_confidence",
        ),
        (
            {"sampler_config": EntropyBound(0.5), "remasking": "entropy"},
            "sampler_config does not go with remasking='entropy'; it needs low_confidence",
        ),
    ],
)
def test_settings_that_would_cancel_or_ignore_each_other_are_refused(settings, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        LladaVGenerationConfig(**settings)


@pytest.mark.parametrize(
    "settings",
    [
        {"threshold": 0.5, "remasking": "margin"},
        {"top_k": 5, "top_p": 1, "temperature": 0.1},
        {"sampler_config": FixedSchedule(), "remasking": "entropy"},
        {"sampler_config": Rule(), "remasking": "random"},
        {"stability_threshold": 0, "confidence_threshold": 1},
    ],
)
def test_settings_that_go_together_are_taken(settings):
    config = LladaVGenerationConfig(**settings)
    assert {name: getattr(config, name) for name in settings} == settings


@pytest.mark.parametrize(
    ("settings", "rule"),
    [
        ({}, FixedSchedule()),
        ({"threshold": 0.9}, ConfidenceThreshold(0.9)),
        ({"threshold": 0}, ConfidenceThreshold(0)),
        ({"factor": 2}, ConfidenceFactor(2)),
        ({"entropy_bound": 0.1}, EntropyBound(0.1)),
        ({"sampler_config": ConfidenceFactor(3.0)}, ConfidenceFactor(3.0)),
        ({"sampler_config": {"_cls_name": "EntropyBound", "entropy_bound": 1.5}}, EntropyBound(1.5)),
    ],
)
def test_the_rule_is_that_of_its_setting(settings, rule):
    assert LladaVGenerationConfig(**settings).commit_rule() == rule


@pytest.mark.parametrize("new", [{"factor": 2.0}, {"sampler_config": ConfidenceFactor(2.0)}])
@pytest.mark.parametrize(
    "old", [{"threshold": 0.9}, {"factor": 1.0}, {"entropy_bound": 1.0}, {"sampler_config": EntropyBound(1.0)}]
)
def test_a_new_rule_replaces_the_old_one(old, new):
    config = LladaVGenerationConfig(**old, temperature=0.5)
    config.change(new)
    config.validate()
    assert config.commit_rule() == ConfidenceFactor(2.0)
    assert config.temperature == 0.5


def test_a_setting_of_none_changes_itself_and_no_other():
    config = LladaVGenerationConfig(factor=1.0, block_length=4)
    config.change({"threshold": None, "block_length": None})
    assert (config.factor, config.block_length) == (1.0, None)
    config.change({"factor": None})
    assert config.commit_rule() == FixedSchedule()


def test_two_new_rules_are_still_refused():
    config = LladaVGenerationConfig()
    config.change({"threshold": 0.9, "factor": 1.0})
    with pytest.raises(ValueError, match=r"^threshold and factor are different rules"):
        config.validate()


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, SamplingSettings()),
        (
            {"temperature": 0.5, "top_k": 7, "top_p": 0.9, "remasking": "margin"},
            SamplingSettings(0.5, 7, 0.9, "margin", needs_entropy=False),
        ),
        ({"entropy_bound": 0.1}, SamplingSettings(needs_entropy=True)),
        ({"confidence_threshold": 0.1}, SamplingSettings(needs_entropy=True)),
        ({"stability_threshold": 1}, SamplingSettings()),
        ({"sampler_config": Rule()}, SamplingSettings()),
    ],
)
def test_entropies_are_worked_out_where_a_rule_or_an_early_end_reads_them(settings, expected):
    assert LladaVGenerationConfig(**settings).sampling() == expected


def test_zero_turns_off_what_transformers_turns_off_with_zero():
    config = LladaVGenerationConfig(top_k=0, no_repeat_ngram_size=0)
    assert (config.top_k, config.no_repeat_ngram_size) == (None, None)


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


@pytest.mark.parametrize(
    ("settings", "holes", "expected"),
    [
        ({}, [5], (5, [5])),
        ({}, [5, 2], (5, [5, 5])),
        ({"block_length": 8}, [5, 2], (5, [5, 5])),
        # Blocks of 2: 3 of them for 5 holes, 1 for 2.
        ({"block_length": 2}, [5, 2], (2, [2, 2])),
        ({"block_length": 2, "max_denoising_steps": 3}, [5, 2], (2, [1, 2])),
        ({"block_length": 2, "max_denoising_steps": 5}, [5, 2], (2, [1, 2])),
        ({"max_denoising_steps": 3}, [5, 2], (5, [3, 3])),
        ({"max_denoising_steps": 128, "max_new_tokens": 128}, [5, 2], (5, [5, 5])),
    ],
)
def test_holes_give_the_lengths_when_infilling(settings, holes, expected):
    assert LladaVGenerationConfig(**settings).hole_schedule(holes) == expected


def test_too_few_steps_for_the_blocks_of_holes_are_refused():
    config = LladaVGenerationConfig(block_length=2, max_denoising_steps=2)
    message = (
        "max_denoising_steps=2 is less than the 3 blocks of block_length=2 that the 5 holes of sample 1 need; pass "
        "max_denoising_steps=3 or more"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        config.hole_schedule([2, 5])


def plan(config, holes, count):
    """How many holes of one sample the fixed schedule fills per step, without empty steps."""
    block, steps = config.hole_schedule(holes)
    steps = steps[holes.index(count)]
    blocks = [min(block, count - start) for start in range(0, count, block)]
    counts = [commits_per_step(torch.tensor(masked), step, steps) for masked in blocks for step in range(steps)]
    return [int(count) for count in counts if count]


@given(
    st.lists(st.integers(1, 12), min_size=1, max_size=4),
    st.one_of(st.none(), st.integers(1, 14)),
    st.one_of(st.none(), st.integers(1, 40)),
)
def test_a_sample_with_holes_takes_the_steps_it_takes_alone(holes, block, steps):
    assume(steps is None or steps >= -(-max(holes) // (block or max(holes))))
    config = LladaVGenerationConfig(block_length=block, max_denoising_steps=steps)
    for count in holes:
        together = plan(config, holes, count)
        assert together == plan(config, [count], count)
        assert sum(together) == count
        assert steps is None or len(together) <= steps


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


@pytest.mark.parametrize("scale", ["2", True, [1.0]])
def test_an_official_scale_is_a_number(scale):
    with pytest.raises(ValueError, match=re.escape(f"cfg_scale={scale!r} must be a number")):
        resolve_aliases({"cfg_scale": scale})


def test_a_single_stop_string_becomes_a_list():
    assert LladaVGenerationConfig(stop_strings="\n").stop_strings == ["\n"]


def test_stop_strings_are_copied_into_a_list():
    texts = ["\n"]
    config = LladaVGenerationConfig(stop_strings=texts)
    texts.append("")
    assert config.stop_strings == ["\n"]
    assert LladaVGenerationConfig(stop_strings=("a", "b")).stop_strings == ["a", "b"]


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


@pytest.mark.parametrize(
    "settings",
    [
        {"threshold": 0.9},
        {"factor": 2},
        {"entropy_bound": 0.25},
        {"sampler_config": FixedSchedule()},
        {"sampler_config": ConfidenceThreshold(0.7), "remasking": "margin"},
        {"sampler_config": ConfidenceFactor(1.5)},
        {"sampler_config": EntropyBound(0.1)},
        # What was a default of transformers once is stored as well.
        {"temperature": 1.0, "top_k": 50, "top_p": 1.0, "no_repeat_ngram_size": 3},
        {"stability_threshold": 0, "confidence_threshold": 0.005},
        {"prompt_refresh_interval": 4, "use_cache": "dual"},
        {"prompt_refresh_interval": None},
    ],
    ids=str,
)
def test_every_rule_survives_the_json_file(settings, tmp_path):
    config = LladaVGenerationConfig(**settings)
    config.save_pretrained(tmp_path)
    loaded = LladaVGenerationConfig.from_pretrained(tmp_path)
    assert loaded == config
    assert loaded.prompt_refresh_interval == config.prompt_refresh_interval
    assert loaded.commit_rule() == config.commit_rule()
    assert {name: getattr(loaded, name) for name in DEFAULTS} == {name: getattr(config, name) for name in DEFAULTS}
    if "sampler_config" in settings:
        stored = json.loads((tmp_path / "generation_config.json").read_text())
        assert stored["sampler_config"] == settings["sampler_config"].to_dict()
    assert LladaVGenerationConfig(**config.to_dict()) == config


def test_a_file_that_is_loaded_can_be_overridden(tmp_path):
    LladaVGenerationConfig(sampler_config=EntropyBound(0.1)).save_pretrained(tmp_path)
    loaded = LladaVGenerationConfig.from_pretrained(tmp_path, sampler_config=None, max_new_tokens=8)
    assert loaded.commit_rule() == FixedSchedule()
    assert loaded.max_new_tokens == 8


def test_configurations_with_different_rules_differ():
    configs = [
        LladaVGenerationConfig(**settings)
        for settings in ({}, {"threshold": 0.5}, {"sampler_config": ConfidenceThreshold(0.5)}, {"factor": 0.5})
    ]
    for first in configs:
        assert [first == second for second in configs] == [first is second for second in configs]


def test_a_rule_of_ones_own_is_shown_but_not_saved(tmp_path):
    config = LladaVGenerationConfig(sampler_config=Rule())
    assert '"_cls_name": "Rule"' in repr(config)
    message = "cannot be loaded again: only FixedSchedule, ConfidenceThreshold, ConfidenceFactor, EntropyBound can; "
    with pytest.raises(ValueError, match=re.escape(message)):
        config.save_pretrained(tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_file_with_an_unknown_rule_is_refused(tmp_path):
    stored = {"sampler_config": {"_cls_name": "EntropyBoundSamplerConfig", "entropy_bound": 0.1}}
    (tmp_path / "generation_config.json").write_text(json.dumps(stored))
    with pytest.raises(ValueError, match="_cls_name='EntropyBoundSamplerConfig'; choose one of"):
        LladaVGenerationConfig.from_pretrained(tmp_path)


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
    assert known == [*DEFAULTS, *ALIASES]
    assert explain_unknown("gen_lenght", known) == "generate() does not take 'gen_lenght'; did you mean 'gen_length'?"
    assert explain_unknown("q", known) == "generate() does not take 'q'"
