"""Adapters by transformers' own calls: the modules that they bring whole, which transformers 5.17 does not load."""

import json
from dataclasses import replace
from typing import Any

from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightRenaming
from transformers.integrations import peft as peft_integration
from transformers.modeling_utils import LoadStateDictConfig
from transformers.utils import find_adapter_config_file

# From 5.18 on transformers renames these tensors itself, with this class.
LEFT_OUT = not hasattr(peft_integration, "WeightRenaming")


def with_whole_modules(
    model: PreTrainedModel, source: str | None, name: str | None, peft_config: Any, load_config: Any, options: Any
) -> Any:
    """Tell transformers 5.17 where the modules go that an adapter trained whole, such as the projector.

    PEFT saves them under their own names, and holds them beside the originals as `modules_to_save.<adapter>`.

    Args:
        model: that takes the adapter.
        source: folder or Hub id of the adapter; None if its configuration is given.
        name: of the adapter in the model; None is "default".
        peft_config: its configuration, a `PeftConfig`; None to read it.
        load_config: how transformers loads, a `LoadStateDictConfig`; None for its defaults.
        options: arguments for downloads, a dictionary; None for none.

    Returns:
        How to load, with a renaming for each such module.
    """
    load_config = load_config or LoadStateDictConfig()
    whole = getattr(peft_config, "modules_to_save", None)
    if peft_config is None and source is not None:
        whole = _read_whole_modules(source, {**load_config.download_kwargs, **(options or {})})
    if not whole:
        return load_config
    beside = f"modules_to_save.{name or 'default'}"
    renamings = [
        WeightRenaming(f"{module}.", f"{module}.{beside}.")
        for module, _ in model.named_modules()
        if module.endswith(tuple(whole))  # as PEFT finds them
    ]
    mapping = load_config.weight_mapping or get_model_conversion_mapping(model)
    return replace(load_config, weight_mapping=[*mapping, *renamings])


def _read_whole_modules(source: str, options: dict[str, Any]) -> list[str] | None:
    """What PEFT's file names, without importing PEFT, which remote code would then demand of everybody."""
    path = find_adapter_config_file(source, **options)
    if path is None:
        return None  # transformers says what is missing
    with open(path, encoding="utf-8") as file:
        whole: list[str] | None = json.load(file).get("modules_to_save")
    return whole
