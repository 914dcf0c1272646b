"""Recipes as data: the stages are those of the paper, and a recipe that cannot work is refused with the fix."""

import dataclasses
import math

import pytest

from transformers_lladav.recipes import PARTS, RECIPES, Lora, Recipe, find_recipe

# LLaDA-V, arXiv:2505.16933: learning rate, that of the vision tower, global batch, tokens.
PAPER = {
    "stage1": (1e-3, None, 64, 8192),
    "stage2a": (1e-5, 2e-6, 256, 8192),
    "stage2b": (1e-5, 2e-6, 256, 16384),
    "stage3a": (1e-5, 2e-6, 256, 8192),
    "stage3b": (1e-5, 2e-6, 256, 16384),
}


@pytest.mark.parametrize("name", PAPER)
def test_the_stages_are_those_of_the_paper(name):
    recipe = RECIPES[name]
    figures = (recipe.learning_rate, recipe.vision_learning_rate, recipe.global_batch_size, recipe.max_length)
    assert figures == PAPER[name]
    assert (recipe.epochs, recipe.schedule, recipe.warmup_ratio, recipe.weight_decay) == (1.0, "cosine", 0.03, 0.0)
    assert (recipe.precision, recipe.gradient_checkpointing) == ("bf16", True)
    assert recipe.trains == (("projector",) if name == "stage1" else PARTS)
    assert (recipe.image_separator, recipe.answers_only, recipe.answer_canvas) == ("\n", False, None)
    assert recipe.train_on_padding
    assert recipe.prompt == ("plain" if name == "stage1" else "chat")


def test_qlora_is_lora_in_four_bits():
    changed = {"name": "qlora", "description": RECIPES["qlora"].description, "quantization": "nf4"}
    assert RECIPES["qlora"] == dataclasses.replace(RECIPES["lora"], **changed)


def test_recipes_are_found_by_name():
    assert all(find_recipe(name).name == name for name in RECIPES)
    with pytest.raises(ValueError, match="no recipe 'lorra'; choose one of lora, qlora, full, projector, stage1"):
        find_recipe("lorra")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"trains": ()}, r"trains nothing: trains=\(\) and lora=None; give parts \(vision_tower, projector"),
        ({"trains": ("language_model",), "lora": Lora()}, "not language_model: leave them out"),
        ({"quantization": "nf4"}, "without lora: what is held in four bits cannot be trained"),
        ({"lora": Lora(), "quantization": "nf4", "precision": "fp32"}, "computes in half precision"),
        ({"global_batch_size": 10, "device_batch_size": 4}, "not a multiple of device_batch_size=4; pass .*size=8"),
        ({"global_batch_size": 2, "device_batch_size": 4}, "pass global_batch_size=4"),
        ({"answer_canvas": (8, 0)}, "answer_canvas=0; pass at least 1"),
        ({"answer_canvas": ()}, "answer_canvas=0; pass at least 1"),
        ({"block_noise": 0}, "block_noise=0; pass at least 1"),
        ({"sparse_noise": 0}, "sparse_noise=0; pass at least 1"),
        ({"block_noise": 8, "complementary": True}, "block_noise=8 and complementary=True say what is hidden"),
        ({"holes": 0.5}, "holes=0.5 of answers that are hidden in blocks; pass block_noise=8 as well, or holes=0"),
        ({"block_noise": 8, "holes": 1.5}, "holes=1.5; a share is from 0 to 1"),
        ({"block_noise": 8, "sparse_noise": 3}, "block_noise=8 and sparse_noise=3 say what is hidden"),
        ({"canvas_turns": "all", "answer_canvas": None}, 'canvas_turns="all" without a canvas; pass answer_canvas=8'),
        ({"packing": True, "train_on_padding": True, "answer_canvas": None}, "packing=True leaves no padding"),
        ({"prompt": "plain", "answers_only": False, "answer_canvas": None}, "pass eval_answers=0, not 64"),
        ({"prompt": "plain", "eval_answers": 0}, "has no messages for answers_only=True; pass answers_only=false"),
        (
            {"prompt": "plain", "eval_answers": 0, "answers_only": False},
            "is never asked, which answer_canvas=64 is for",
        ),
        ({"chat_share": 0.5}, 'chats among completions; pass prompt="completion" as well, or chat_share=0'),
        ({"prompt": "completion", "chat_share": -0.5}, r"chat_share=-0\.5; a share is from 0 to 1"),
        ({"train_on_padding": True}, "both learn what comes after an answer; pass answer_canvas=null"),
        ({"answer_canvas": 0}, "answer_canvas=0; pass at least 1"),
        ({"best_by": "exact_match", "eval_answers": 0}, "pass eval_answers=64"),
        ({"learning_rate": 0.0}, r"learning_rate=0\.0; pass more than 0"),
        ({"learning_rate": math.nan}, "learning_rate=nan; pass more than 0"),
        ({"vision_learning_rate": -1.0}, r"vision_learning_rate=-1\.0; pass more than 0"),
        ({"epochs": 0.0}, r"epochs=0\.0; pass more than 0"),
        ({"max_steps": 0}, "max_steps=0; pass at least 1"),
        ({"patience": 0}, "patience=0; pass at least 1"),
        ({"device_batch_size": 0}, "device_batch_size=0; pass at least 1"),
        ({"warmup_ratio": 1.5}, r"warmup_ratio=1\.5; it is a share of the steps: pass 0 to 1"),
        ({"weight_decay": -0.1}, r"weight_decay=-0\.1; pass at least 0"),
        ({"weight_decay": math.nan}, "weight_decay=nan; pass at least 0"),
        ({"learning_rate": math.inf}, "learning_rate=inf; pass a finite number"),
        ({"epochs": math.inf}, "epochs=inf; pass a finite number"),
        ({"trains": ("projector", "tower")}, "trains='tower' is not known; choose 'vision_tower' or 'projector' or"),
        ({"schedule": "cosin"}, "schedule='cosin' is not known; choose 'cosine' or 'linear' or 'constant'"),
        ({"precision": "bf-16"}, "precision='bf-16' is not known; choose 'auto' or 'bf16' or 'fp16' or 'fp32'"),
        ({"prompt": "chats"}, "prompt='chats' is not known; choose 'chat' or 'plain' or 'completion'"),
        ({"canvas_turns": "first"}, "canvas_turns='first' is not known; choose 'last' or 'all'"),
        ({"best_by": "accuracy"}, "best_by='accuracy' is not known; choose 'loss' or 'exact_match'"),
        ({"lora": Lora(), "quantization": "int8"}, "quantization='int8' is not known; choose 'nf4'"),
    ],
)
def test_recipes_that_cannot_work_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        Recipe(**{"name": "mine", "description": "", "trains": ("projector",), **fields})


def test_gradients_of_any_norm_may_be_left_as_they_are():
    """An infinite norm is how nothing is scaled down, since 0 is refused."""
    assert Recipe("mine", "", ("projector",), max_grad_norm=math.inf).max_grad_norm == math.inf


def test_completions_some_of_which_are_chats_have_answers_to_learn_and_to_measure():
    """Which completions alone have not: see the cases above."""
    fields = {"prompt": "completion", "answers_only": True, "eval_answers": 8}
    with pytest.raises(ValueError, match="answers_only=True"):
        Recipe("mine", "", ("projector",), **fields)
    recipe = Recipe("mine", "", ("projector",), chat_share=0.1, **fields)
    assert (recipe.answers_only, recipe.eval_answers) == (True, 8)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"rank": 0}, r"lora\.rank=0; pass at least 1"),
        ({"dropout": 1.0}, r"lora\.dropout=1\.0; it is a share"),
        ({"alpha": 0.0}, r"lora\.alpha=0\.0; the update is scaled by it"),
        ({"alpha": math.inf}, r"lora\.alpha=inf; the update is scaled by it: pass a number above 0"),
    ],
)
def test_adapters_that_cannot_work_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        Lora(**fields)
