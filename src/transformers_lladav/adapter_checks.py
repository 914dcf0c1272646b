"""Whether a PEFT folder is an adapter that others can load: checked before it is published."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from .card_facts import ADAPTER_CONFIG, ADAPTER_WEIGHTS, read_object, size_text
from .sources import is_hub_id
from .weights import count_non_finite, pickle_problems

# What the names of an adapter's tensors have in common, by PEFT's name for its kind.
PREFIXES = {
    "ADALORA": "lora_", "BOFT": "boft_", "IA3": "ia3_", "LOHA": "hada_", "LOKR": "lokr_", "LORA": "lora_",
    "OFT": "oft_", "VERA": "vera_lambda_",
}  # fmt: skip


@dataclass(frozen=True)
class Checked:
    """What a check found, a sentence each.

    Attributes:
        errors: why the folder must not be published.
        warnings: what its author should know.
        passed: what is as it should be.
    """

    errors: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    passed: list[str] = field(default_factory=list)


def check_adapter(folder: Path, base_model: str | None = None) -> Checked:
    """Check a PEFT folder.

    Args:
        folder: with `adapter_config.json`.
        base_model: Hub id that will stand in for what the configuration says.

    Returns:
        Every finding; nothing is raised for a bad folder.
    """
    checked = Checked()
    checked.errors.extend(
        problem for problem in pickle_problems(path.name for path in folder.glob("*")) if "adapter_model" in problem
    )
    try:
        config = read_object(folder / ADAPTER_CONFIG)
    except ValueError as error:
        checked.errors.append(str(error))
        return checked
    prefix = _check_kind(config, checked)
    _check_base(base_model or config.get("base_model_name_or_path"), checked)
    if not (folder / ADAPTER_WEIGHTS).is_file():
        checked.errors.append(f"{ADAPTER_WEIGHTS} is missing; save the adapter with PeftModel.save_pretrained")
    else:
        saved = config.get("modules_to_save")
        _check_tensors(folder / ADAPTER_WEIGHTS, prefix, saved if isinstance(saved, list) else [], checked)
    return checked


def _check_kind(config: dict[str, Any], checked: Checked) -> str | None:
    """The prefix of the tensors of this kind of adapter, or None if it has none or nobody here knows it."""
    kind = str(config.get("peft_type") or "").removeprefix("PeftType.")
    known = set(PREFIXES)
    try:
        from peft import PeftType

        known |= {member.value for member in PeftType}
    except ImportError:
        if kind and kind not in known:
            text = f"peft_type={kind!r} cannot be checked without PEFT: pip install 'transformers_lladav[train]'"
            checked.warnings.append(text)
            return None
    if kind not in known:
        kinds = ", ".join(sorted(known))
        checked.errors.append(f"{ADAPTER_CONFIG} has peft_type={config.get('peft_type')!r}; PEFT knows {kinds}")
        return None
    checked.passed.append(f"{ADAPTER_CONFIG} describes an adapter of type {kind}")
    if kind not in PREFIXES:
        checked.warnings.append(f"what tensors an adapter of type {kind} may hold is not checked")
    return PREFIXES.get(kind)


def _check_base(base: Any, checked: Checked) -> None:
    if not base:
        checked.errors.append(
            f"{ADAPTER_CONFIG} has no base_model_name_or_path, so nobody can load the adapter; pass --base-model ID"
        )
    elif not is_hub_id(base):
        checked.warnings.append(
            f"base_model_name_or_path={base!r} is no repository on the Hub, so others cannot load it; pass "
            "--base-model ID to publish the adapter with one"
        )
    else:
        checked.passed.append(f"the base model is {base}")


def _check_tensors(file: Path, prefix: str | None, saved_modules: list[str], checked: Checked) -> None:
    """Look at every tensor: is it finite, and is it the adapter's own?"""
    broken, foreign, foreign_bytes, count = [], [], 0, 0
    try:
        with safe_open(file, framework="pt") as handle:
            for key in handle.keys():  # noqa: SIM118
                tensor = handle.get_tensor(key)
                count += 1
                if _is_floating(tensor) and count_non_finite(tensor):
                    broken.append(key)
                if prefix is not None and prefix not in key and not _in_saved_module(key, saved_modules):
                    foreign.append(key)
                    foreign_bytes += tensor.nbytes
    except (SafetensorError, OSError) as error:
        checked.errors.append(f"{file.name} is truncated or damaged ({error})")
        return
    if broken:
        checked.errors.append(f"{len(broken)} of {count} tensors hold NaN or infinity: {_some(broken)}")
    if foreign:
        share = f"{size_text(foreign_bytes)} of {size_text(file.stat().st_size)}"
        checked.errors.append(
            f"{len(foreign)} of {count} tensors ({share}) belong to the model and not to the adapter: "
            f"{_some(foreign)}; save the adapter alone with PeftModel.save_pretrained, "
            "or name in modules_to_save what is meant to be in it"
        )
    if not count:
        checked.errors.append(f"{file.name} holds no tensors")
    elif not broken and not foreign:
        checked.passed.append(f"{count} tensors, all finite{' and part of the adapter' if prefix else ''}")


def _is_floating(tensor: torch.Tensor) -> bool:
    return tensor.is_floating_point() or tensor.is_complex()


def _in_saved_module(key: str, modules: list[str]) -> bool:
    """Whether a tensor is of a module that the configuration says is saved as a whole."""
    return any(f".{module}." in f".{key}" for module in modules)


def _some(names: list[str]) -> str:
    shown = ", ".join(names[:3])
    return f"{shown}, ..." if len(names) > 3 else shown
