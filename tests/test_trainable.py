"""Exactly what a recipe says trains: shown by taking a step and comparing every parameter with what it was."""

import copy
from dataclasses import replace

import pytest
import torch

from transformers_lladav import BUNDLED_CHECKPOINT, LladaVForMaskedDiffusion
from transformers_lladav.recipes import RECIPES, Lora, Recipe
from transformers_lladav.trainable import (
    NEVER_READ,
    check_trainable,
    expected_trainable,
    lora_targets,
    parameter_groups,
    part_of,
    prepare_trainable,
    summarise,
)

LAYERS, HIDDEN, RANK = 4, 128, 16
LINEARS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
# In four bits nothing changes about which parameters train; test_quantization takes such a step for real.
BY_NAME = {name: recipe for name, recipe in RECIPES.items() if recipe.quantization is None}


@pytest.fixture(scope="module")
def bundled():
    return LladaVForMaskedDiffusion.from_pretrained(BUNDLED_CHECKPOINT, dtype=torch.float32)


@pytest.fixture
def model(bundled):
    return copy.deepcopy(bundled)


def batch(model):
    """Two rows with a picture of one tile each, and with gradients for every part that is read."""
    generator = torch.Generator().manual_seed(0)
    side = model.config.vision_config.image_size
    tokens = (side // 16) ** 2 + 1  # and a newline
    ids = torch.randint(1, 40, (2, tokens + 12), generator=generator)
    ids[:, 2 : 2 + tokens] = model.config.image_token_id
    labels = torch.full_like(ids, -100)
    labels[:, -8:] = ids[:, -8:]
    ids[:, -8:] = model.config.mask_token_id
    return {
        "input_ids": ids,
        "labels": labels,
        "loss_weights": (labels != -100).float() / 8,
        "pixel_values": torch.randn(2, 3, side, side, generator=generator),
        "image_sizes": torch.tensor([[side, side]] * 2),
    }


def by_hand(recipe):
    """The names that train, spelt out from the model's own names and nothing else."""
    model = LladaVForMaskedDiffusion.from_pretrained(BUNDLED_CHECKPOINT)
    starts = {
        "vision_tower": "model.vision_tower.",
        "projector": "model.multi_modal_projector.",
        "newline": "model.image_newline",
        "language_model": "model.language_model.",
        "head": "lm_head.",
    }
    chosen = tuple(starts[part] for part in recipe.trains)
    own = [name for name, _ in model.named_parameters() if name.startswith(chosen) and "post_layernorm" not in name]
    if recipe.lora is None:
        return set(own)
    names = {f"base_model.model.{name}".replace("projector.", "projector.modules_to_save.default.") for name in own}
    for layer in range(LAYERS):
        for linear in LINEARS:
            block = "self_attn" if linear in LINEARS[:4] else "mlp"
            for kind in ("lora_A", "lora_B"):
                names.add(
                    f"base_model.model.model.language_model.layers.{layer}.{block}.{linear}.{kind}.default.weight"
                )
    return names


@pytest.mark.parametrize("name", BY_NAME)
def test_a_step_changes_what_the_recipe_trains_and_nothing_else(name, model):
    recipe = replace(BY_NAME[name], gradient_checkpointing=False)
    prepared = prepare_trainable(model, recipe)
    before = {name: parameter.detach().clone() for name, parameter in prepared.named_parameters()}
    buffers = {name: buffer.clone() for name, buffer in prepared.named_buffers()}
    # Twice, since the first step of an adapter moves B, which begins at zero, and leaves A.
    optimizer = torch.optim.AdamW(parameter_groups(prepared, recipe))
    for _ in range(2):
        prepared(**batch(model)).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    changed = {name for name, parameter in prepared.named_parameters() if not torch.equal(parameter, before[name])}
    assert changed == by_hand(recipe)
    assert all(torch.equal(buffer, buffers[name]) for name, buffer in prepared.named_buffers())


@pytest.mark.parametrize("name", RECIPES)
def test_the_expected_list_is_the_one_spelt_out(name, bundled):
    assert expected_trainable(bundled, RECIPES[name]) == by_hand(RECIPES[name])


def test_the_tower_s_last_norm_never_trains(model):
    """Nothing reads it; distributed training would wait for its gradient for ever."""
    prepare_trainable(model, RECIPES["full"])
    frozen = [name for name, parameter in model.named_parameters() if not parameter.requires_grad]
    assert frozen == [f"{NEVER_READ}weight", f"{NEVER_READ}bias"]


def test_what_trains_is_in_float32_and_the_rest_stays_as_it_is(model):
    prepared = prepare_trainable(model.bfloat16(), RECIPES["lora"])
    types = {parameter.requires_grad: parameter.dtype for parameter in prepared.parameters()}
    assert types == {True: torch.float32, False: torch.bfloat16}


def test_counts_by_part(model):
    recipe = RECIPES["lora"]
    projector, adapters = summarise(prepare_trainable(model, recipe), recipe)
    assert (projector.part, projector.adapter, projector.tensors) == ("projector", False, 4)
    assert projector.parameters == projector.total == 2 * (HIDDEN * HIDDEN + HIDDEN)
    assert (adapters.part, adapters.adapter, adapters.tensors) == ("language_model", True, LAYERS * 7 * 2)
    width = model.config.text_config.intermediate_size
    assert adapters.parameters == LAYERS * RANK * (4 * 2 * HIDDEN + 3 * (HIDDEN + width))
    assert adapters.learning_rate == recipe.learning_rate


def test_the_tower_has_a_rate_of_its_own_and_only_matrices_decay(model):
    recipe = replace(RECIPES["full"], weight_decay=0.1)
    groups = parameter_groups(prepare_trainable(model, recipe), recipe)
    found = {(group["lr"], group["weight_decay"]): group["params"] for group in groups}
    assert set(found) == {(1e-5, 0.0), (1e-5, 0.1), (2e-6, 0.0), (2e-6, 0.1)}
    for (_, decay), parameters in found.items():
        assert all((parameter.ndim > 1) == (decay > 0) for parameter in parameters)
    tower = {id(parameter) for parameter in model.model.vision_tower.parameters() if parameter.requires_grad}
    assert {id(parameter) for key in found if key[0] == 2e-6 for parameter in found[key]} == tower
    sizes = sum(len(parameters) for parameters in found.values())
    assert sizes == sum(parameter.requires_grad for parameter in model.parameters())


def test_adapters_go_where_a_pattern_says(bundled):
    layers = lora_targets(bundled, Lora(targets=r"model\.vision_tower\..*\.(q|v)_proj"))
    assert layers == [
        f"model.vision_tower.encoder.layers.{i}.self_attn.{name}"
        for i in range(LAYERS)
        for name in ("v_proj", "q_proj")
    ]


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (r"q_proj", "trains nothing: lora.targets='q_proj' matches no layer; a name is such as"),
        (r".*layers\.0", "matches model.vision_tower.encoder.layers.0, which is no linear layer"),
        (r"(", "is no regular expression"),
    ],
)
def test_patterns_that_find_nothing_or_too_much_are_refused(targets, message, bundled):
    with pytest.raises(ValueError, match=message):
        lora_targets(bundled, Lora(targets=targets))


def test_an_adapter_inside_a_part_that_trains_whole_is_refused(bundled):
    recipe = replace(RECIPES["lora"], lora=Lora(targets=r".*\.linear_2"))
    with pytest.raises(ValueError, match=r'linear_2, of a part that is trained whole; take "projector" out of trains'):
        expected_trainable(bundled, recipe)


def test_an_unexpected_gradient_is_found(model):
    recipe = Recipe(name="mine", description="", trains=("projector",))
    expected = expected_trainable(model, recipe)
    prepare_trainable(model, recipe)
    check_trainable(model, expected)
    model.lm_head.weight.requires_grad_(True)
    model.model.multi_modal_projector.linear_1.bias.requires_grad_(False)
    with pytest.raises(RuntimeError) as found:
        check_trainable(model, expected)
    assert "1 are frozen: model.multi_modal_projector.linear_1.bias" in str(found.value)
    assert "1 are not frozen: lm_head.weight" in str(found.value)


def test_every_parameter_belongs_to_a_part(bundled):
    with pytest.raises(ValueError, match=r"'model\.mystery\.weight' belongs to no part"):
        part_of("model.mystery.weight")
    assert {part_of(name) for name, _ in bundled.named_parameters()} == set(RECIPES["full"].trains)
