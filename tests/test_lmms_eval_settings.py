"""What lmms-eval's tasks say, and what a user gives, becomes settings of the loop."""

import json
from pathlib import Path

import pytest

from transformers_lladav.lmms_eval_settings import TASK_PRESETS, settings_of_task, translate_kwargs
from transformers_lladav.presets_lladav import PRESETS

SCORES = Path(__file__).parent.parent / "model_cards" / "paper" / "scores.json"


def test_tasks_of_the_paper_get_its_settings_and_tag():
    settings = settings_of_task("chartqa", {"max_new_tokens": 64, "until": ["ASSISTANT:"], "do_sample": False})
    assert settings.generation == PRESETS["chartqa"].settings
    assert settings.tag == "/no_think"
    assert settings.not_honoured == (
        "max_new_tokens=64 of the task, in favour of the paper's",
        "stop_strings=['ASSISTANT:'] of the task, in favour of the paper's",
    )
    assert settings.describe() == (
        "the paper's settings for chartqa: max_new_tokens=16, block_length=16, max_denoising_steps=16, "
        "stop_strings=['\\n'], /no_think after the question"
    )


def test_every_benchmark_of_the_paper_has_a_task():
    presets = {score["preset"] for score in json.loads(SCORES.read_text())["scores"]}
    assert presets <= set(TASK_PRESETS.values()) <= set(PRESETS)


def test_every_task_exists():
    pytest.importorskip("lmms_eval", reason="lmms-eval is not installed")
    from transformers_lladav.lmms_eval_model import find_tasks

    found = find_tasks([*TASK_PRESETS, "mmmu_vall"])
    assert found.pop("mmmu_vall") == "lmms-eval has no task 'mmmu_vall'"
    assert [name for name, config in found.items() if config == f"lmms-eval has no task {name!r}"] == []


@pytest.mark.parametrize(
    ("kwargs", "block", "expected"),
    [
        ({}, 8, {}),
        ({"max_new_tokens": 20}, 8, {"max_new_tokens": 24, "max_denoising_steps": None}),
        ({"max_new_tokens": 20}, None, {"max_new_tokens": 20, "max_denoising_steps": None}),
        ({"max_gen_toks": 3}, 8, {"max_new_tokens": 8, "max_denoising_steps": None}),
        (
            {"max_new_tokens": 20, "block_length": 16, "threshold": 0.9},
            8,
            {"max_new_tokens": 32, "max_denoising_steps": None, "block_length": 16, "threshold": 0.9},
        ),
        ({"until": None}, 8, {}),
        ({"until": []}, 8, {}),
        ({"until": "\n\n"}, 8, {"stop_strings": ["\n\n"]}),
        ({"until": ["</s>", ""], "stop_sequences": ["Q:"]}, 8, {"stop_strings": ["</s>", "Q:"]}),
        ({"temperature": 0, "top_p": 1.0, "num_beams": 1, "do_sample": False}, 8, {"temperature": 0.0}),
        ({"temperature": 0, "top_p": 0, "repetition_penalty": 1.0}, 8, {"temperature": 0.0}),
        ({"temperature": 0.7, "do_sample": False}, 8, {"temperature": 0.0}),
        ({"temperature": 0, "do_sample": True}, 8, {"temperature": 0.0}),
        ({"do_sample": True}, 8, {"temperature": 1.0, "top_p": None, "top_k": None}),
        ({"temperature": 0.7, "top_p": 0.9}, 8, {"temperature": 0.7, "top_p": 0.9, "top_k": None}),
        ({"temperature": 1, "do_sample": True, "top_k": 5}, 8, {"temperature": 1.0, "top_p": None, "top_k": 5}),
    ],
)
def test_what_a_task_says_is_translated(kwargs, block, expected):
    arguments, missing = translate_kwargs(kwargs, block)
    assert arguments == expected
    assert missing == []


def test_what_the_loop_cannot_do_is_refused_or_reported():
    with pytest.raises(
        ValueError, match=r"^num_beams=3: a denoising loop has no beams; pass --gen_kwargs num_beams=1$"
    ):
        translate_kwargs({"num_beams": 3}, 8)
    _, missing = translate_kwargs({"image_aspect_ratio": "pad", "repetition_penalty": 1.2}, 8)
    assert missing == [
        "image_aspect_ratio='pad'",
        "repetition_penalty=1.2: give no_repeat_ngram_size, or a RepetitionPenaltyLogitsProcessor as logits_processor",
    ]


def test_a_canvas_stays_within_the_positions_unless_the_user_wants_more():
    arguments, missing = translate_kwargs({"max_new_tokens": 49152}, 32, 8192)
    assert arguments == {"max_new_tokens": 8192, "max_denoising_steps": None}
    assert missing == ["max_new_tokens=49152: a canvas has at most 8192, half of the model's positions"]
    assert translate_kwargs({"max_new_tokens": 49152}, None, 8192)[0]["max_new_tokens"] == 8192
    asked = settings_of_task("mine", {"max_new_tokens": 49152}, {"max_new_tokens": 9000}, longest=8192)
    assert asked.generation["max_new_tokens"] == 9000


def test_the_user_wins():
    own = settings_of_task("mine", {"max_new_tokens": 20, "temperature": 0.5, "top_p": 0.9}, {"temperature": 0}, None)
    assert own.generation["temperature"] == 0
    assert own.generation["top_p"] is None
    longer = settings_of_task("mmstar", {}, {"gen_length": 64}).generation
    assert [longer[name] for name in ("max_new_tokens", "block_length", "max_denoising_steps")] == [64, None, None]
    faster = settings_of_task("mathverse_testmini", {}, {"steps": 16}, "fast")
    assert [faster.generation[name] for name in ("max_new_tokens", "max_denoising_steps", "threshold")] == [
        64,
        16,
        0.9,
    ]
    assert faster.tag == "/think"
    assert faster.source == "the paper's settings for mathverse, preset fast, model_args"
    other = settings_of_task("mmstar", {"max_new_tokens": 9}, None, "docvqa")
    assert (other.generation, other.tag) == (PRESETS["docvqa"].settings, "/no_think")
    plain = settings_of_task("mmstar", {"max_new_tokens": 9}, {"block_length": 4}, None, paper=False, block_length=8)
    assert plain.generation == {"max_new_tokens": 12, "max_denoising_steps": None, "block_length": 4}
    assert plain.tag is None
