"""What a recipe trains, as an explicit list of parameters: chosen, counted, and asserted."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import nn

from .recipes import Lora, Part, Recipe

# Where the parts stand in the model.
PART_PREFIXES: dict[Part, str] = {
    "vision_tower": "model.vision_tower.",
    "projector": "model.multi_modal_projector.",
    "newline": "model.image_newline",
    "language_model": "model.language_model.",
    "head": "lm_head.",
}
# Official weights hold the tower's last norm, but LLaDA-V reads the features before it: it never gets a gradient, and
# distributed training waits for every gradient it was promised.
NEVER_READ = "model.vision_tower.post_layernorm."
# What PEFT puts before and into names.
PEFT_PREFIX = "base_model.model."
ADAPTER = "default"


@dataclass(frozen=True)
class Trainable:
    """Parameters that are trained together.

    Attributes:
        part: where they belong.
        adapter: whether they are LoRA weights beside the part rather than its own.
        tensors: how many.
        parameters: entries of them.
        total: entries of the part, without adapters.
        learning_rate: peak of the schedule.
    """

    part: Part
    adapter: bool
    tensors: int
    parameters: int
    total: int
    learning_rate: float


def part_of(name: str) -> Part:
    """The part of the model that a parameter belongs to.

    Args:
        name: of the parameter, with or without what PEFT puts before it.

    Returns:
        The part.

    Raises:
        ValueError: if there is no such part.
    """
    plain = name.removeprefix(PEFT_PREFIX)
    for part, prefix in PART_PREFIXES.items():
        if plain.startswith(prefix):
            return part
    raise ValueError(f"the parameter {name!r} belongs to no part of a LLaDA-V")


def lora_targets(model: nn.Module, lora: Lora) -> list[str]:
    """Names of the layers that get an adapter.

    Args:
        model: a LLaDA-V without adapters.
        lora: gives the pattern.

    Returns:
        Their full names.

    Raises:
        ValueError: if the pattern is no regular expression or fits nothing, or a layer that it fits is not linear.
    """
    try:
        pattern = re.compile(lora.targets)
    except re.error as error:
        raise ValueError(f"lora.targets={lora.targets!r} is no regular expression: {error}") from error
    found = {name: module for name, module in model.named_modules() if pattern.fullmatch(name)}
    if not found:
        raise ValueError(
            f"the recipe trains nothing: lora.targets={lora.targets!r} matches no layer; a name is such as "
            "model.language_model.layers.0.self_attn.q_proj"
        )
    if others := [name for name, module in found.items() if not isinstance(module, nn.Linear)]:
        raise ValueError(
            f"lora.targets={lora.targets!r} matches {others[0]}, which is no linear layer; make it longer"
        )
    return list(found)


def expected_trainable(model: nn.Module, recipe: Recipe) -> set[str]:
    """The names of what a recipe trains, worked out from the bare model and not from what was prepared.

    Args:
        model: a LLaDA-V without adapters.
        recipe: the recipe.

    Returns:
        Names as the prepared model has them.

    Raises:
        ValueError: as of `lora_targets`, or if adapters would be in a part that is trained whole.
    """
    own = {
        name
        for name, _ in model.named_parameters()
        if part_of(name) in recipe.trains and not name.startswith(NEVER_READ)
    }
    if recipe.lora is None:
        return own
    layers = lora_targets(model, recipe.lora)
    if both := [layer for layer in layers if part_of(f"{layer}.weight") in recipe.trains]:
        raise ValueError(
            f"lora.targets={recipe.lora.targets!r} matches {both[0]}, of a part that is trained whole; take "
            f'"{part_of(both[0] + ".weight")}" out of trains={list(recipe.trains)}, or make the pattern narrower'
        )
    saved = {PEFT_PREFIX + _in_saved_module(name) for name in own}
    kinds = ["lora_A.{}.weight", "lora_B.{}.weight"]
    if recipe.lora.dora:
        kinds.append("lora_magnitude_vector.{}.weight")
    return saved | {f"{PEFT_PREFIX}{layer}.{kind.format(ADAPTER)}" for layer in layers for kind in kinds}


def _in_saved_module(name: str) -> str:
    """The name of a parameter in the copy of its module that PEFT trains and saves with the adapter."""
    prefix = PART_PREFIXES[part_of(name)]
    return f"{prefix}modules_to_save.{ADAPTER}.{name.removeprefix(prefix)}"


def prepare_trainable(model: nn.Module, recipe: Recipe) -> Any:
    """Freeze and attach, so that exactly what the recipe says gets gradients.

    Args:
        model: a LLaDA-V without adapters; it is changed.
        recipe: the recipe.

    Returns:
        The model, or the PEFT model around it. What is trained is in float32.

    Raises:
        ImportError: if the recipe has adapters and PEFT is not installed.
        ValueError: as of `expected_trainable`.
        RuntimeError: if something else would train than the recipe says, which is a fault of ours.
    """
    expected = expected_trainable(model, recipe)
    prepared = model.requires_grad_(False)
    if recipe.lora is not None:
        prepared = _attach(model, recipe)
    for name, parameter in prepared.named_parameters():
        parameter.requires_grad_(name in expected)
        if name in expected:
            parameter.data = parameter.data.float()
    check_trainable(prepared, expected)
    return prepared


def _attach(model: nn.Module, recipe: Recipe) -> Any:
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError as error:
        raise ImportError("LoRA needs PEFT: pip install 'transformers_lladav[train]'") from error
    assert recipe.lora is not None
    config = LoraConfig(
        task_type=None,
        r=recipe.lora.rank,
        lora_alpha=recipe.lora.alpha,
        lora_dropout=recipe.lora.dropout,
        target_modules=recipe.lora.targets,
        use_rslora=recipe.lora.rslora,
        use_dora=recipe.lora.dora,
        modules_to_save=[PART_PREFIXES[part].rstrip(".").split(".")[-1] for part in recipe.trains] or None,
    )
    return get_peft_model(model, config, adapter_name=ADAPTER)


def check_trainable(prepared: nn.Module, expected: set[str]) -> None:
    """Assert that exactly the expected parameters get gradients.

    Args:
        prepared: the model as it will be trained.
        expected: from `expected_trainable`.

    Raises:
        RuntimeError: naming what is missing and what is too much.
    """
    actual = {name for name, parameter in prepared.named_parameters() if parameter.requires_grad}
    if actual == expected:
        return
    missing, extra = sorted(expected - actual), sorted(actual - expected)
    found = [
        f"{len(names)} {what}: {', '.join(names[:3])}"
        for names, what in ((missing, "are frozen"), (extra, "are not frozen"))
        if names
    ]
    raise RuntimeError(f"what would train is not what the recipe says; {'; '.join(found)}. Please report this")


def parameter_groups(prepared: nn.Module, recipe: Recipe) -> list[dict[str, Any]]:
    """What AdamW gets: tower and rest with their rates, matrices with decay and the others without.

    Args:
        prepared: the model as it will be trained.
        recipe: gives rates and decay.

    Returns:
        Groups that are not empty, in a fixed order.
    """
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for name, parameter in prepared.named_parameters():
        if parameter.requires_grad:
            key = (part_of(name) == "vision_tower", parameter.ndim > 1)
            groups.setdefault(key, []).append(parameter)
    return [
        {
            "params": parameters,
            "lr": rate_of("vision_tower" if vision else "head", recipe),
            "weight_decay": recipe.weight_decay if decays else 0.0,
        }
        for (vision, decays), parameters in sorted(groups.items(), key=lambda item: item[0])
    ]


def rate_of(part: Part, recipe: Recipe) -> float:
    """The peak learning rate of a part.

    Args:
        part: of the model.
        recipe: gives the rates.

    Returns:
        The rate.
    """
    if part == "vision_tower" and recipe.vision_learning_rate is not None:
        return recipe.vision_learning_rate
    return recipe.learning_rate


def summarise(prepared: nn.Module, recipe: Recipe) -> list[Trainable]:
    """Count what is trained, by part.

    Args:
        prepared: the model as it will be trained.
        recipe: gives the rates.

    Returns:
        An entry for each part and kind that trains, in the order of the model.
    """
    total: dict[Part, int] = dict.fromkeys(PART_PREFIXES, 0)
    counted: dict[tuple[Part, bool], list[int]] = {}
    for name, parameter in prepared.named_parameters():
        part, adapter = part_of(name), ".lora_" in name
        if not adapter and ".modules_to_save." not in name:
            total[part] += _entries(parameter)
        if parameter.requires_grad:
            counted.setdefault((part, adapter), []).append(parameter.numel())
    return [
        Trainable(part, adapter, len(sizes), sum(sizes), total[part], rate_of(part, recipe))
        for (part, adapter), sizes in counted.items()
    ]


def _entries(parameter: nn.Parameter) -> int:
    """Entries of a parameter, also of one that holds two in a byte."""
    state = getattr(parameter, "quant_state", None)
    return state.shape.numel() if state is not None else parameter.numel()


def trained_names(prepared: nn.Module) -> Iterator[str]:
    """The full names of what is trained, in the order of the model."""
    return (name for name, parameter in prepared.named_parameters() if parameter.requires_grad)
