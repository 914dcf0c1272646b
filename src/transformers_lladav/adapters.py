"""Adapters after training: loading one beside its base model, checked first, and merging it into the base.

An adapter is a PEFT folder. `base_model.json` in it says what it was trained on, so that another base is noticed.
"""

import copy
import shutil
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor

from .adapter_fit import (
    AdapterError,
    check_base,
    check_files,
    check_fit,
    compare_weights,
    describe_base,
    import_peft,
    quantization_of,
    read_base,
    write_base,
)
from .card_facts import ADAPTER_CONFIG, RECIPE, read_object
from .files import check_free, check_space, new_folder
from .modeling_lladav import LladaVForMaskedDiffusion
from .publishing import save_checkpoint
from .sources import fetch, is_hub_id
from .weights import count_non_finite

__all__ = [
    "AdapterError",
    "Merged",
    "attach_adapter",
    "check_base",
    "check_fit",
    "describe_base",
    "load_processor",
    "load_with_adapter",
    "merge",
    "write_base",
]

PROCESSOR_FILE = "processor_config.json"
FIX = "say where it is with base=... (on the command line: --model FOLDER)"
# Of the arguments of `from_pretrained`, those that decide which configuration is read.
OF_CONFIG = ("revision", "trust_remote_code", "token", "cache_dir", "vision_config")


@dataclass(frozen=True)
class Merged:
    """What `merge` made.

    Attributes:
        base: the model that the adapter was merged into.
        parameters: entries of the merged model.
        dtype: their type.
        notes: what its owner should know, a sentence each.
    """

    base: str
    parameters: int
    dtype: torch.dtype
    notes: list[str]


def attach_adapter(model: Any, adapter: str | Path, name: str = "default") -> Any:
    """Load an adapter beside a model, which is checked first.

    Args:
        model: a LLaDA-V, which is changed in place, or the PEFT model from an earlier call, which then holds several
            adapters. `model.set_adapter(name)` switches; the first one is active.
        adapter: a folder, or a Hub id, of which only safetensors and JSON are fetched.
        name: what the adapter is called in the model.

    Returns:
        The PEFT model. With other weights than the adapter was trained on there is a warning.

    Raises:
        AdapterError: if the adapter does not fit or is a pickle; the model is as it was then.
        ValueError: if the name is taken, or holds a dot.
        ImportError: if PEFT is not installed.
    """
    folder = fetch(str(adapter))
    check_fit(folder, model.config)
    return _attach(model, folder, name)


def _attach(model: Any, folder: Path, name: str) -> Any:
    """Load an adapter that is known to fit."""
    peft = import_peft()
    if not name or "." in name:
        raise ValueError(f"name={name!r}: give a name without dots that is not empty")
    held = isinstance(model, peft.PeftModel)
    if held and name in model.peft_config:
        raise ValueError(f"name={name!r} is taken; the model holds {', '.join(model.peft_config)}: choose another")
    if not held and getattr(model, "_hf_peft_config_loaded", False):
        raise ValueError("the model holds adapters by its own load_adapter; load the base afresh, or use that")
    for text in compare_weights(folder, model):
        warnings.warn(text, stacklevel=3)
    if not held:
        return peft.PeftModel.from_pretrained(model, folder, adapter_name=name)
    model.load_adapter(folder, adapter_name=name)
    return model


def load_with_adapter(
    adapter: str | Path, base: str | Path | None = None, name: str = "default", **loading: Any
) -> Any:
    """Load a base model and an adapter beside it.

    Args:
        adapter: a folder or a Hub id.
        base: folder or Hub id of the base model; by default what the adapter was trained on.
        name: what the adapter is called in the model.
        **loading: passed to `AutoModelForImageTextToText.from_pretrained`.

    Returns:
        The PEFT model in evaluation mode.

    Raises:
        AdapterError: if the adapter does not fit; this is found before the base is loaded.
        FileNotFoundError: if the base is not there, or not named.
        OSError: if it cannot be loaded.
    """
    folder = fetch(str(adapter))
    source, options = _find_base(folder, base)
    loading = {**options, **loading}
    check_fit(folder, loading.get("config") or _read_config(folder, source, base, loading), source)
    model = AutoModelForImageTextToText.from_pretrained(source, **loading)
    return _attach(model, folder, name).eval()


def _find_base(folder: Path, base: str | Path | None) -> tuple[str, dict[str, Any]]:
    """The base model that a user gives or an adapter names, and the arguments that its loading needs."""
    check_files(folder)
    if base is not None:
        return str(base), {}
    settings = read_object(folder / ADAPTER_CONFIG)
    source, revision = settings.get("base_model_name_or_path"), settings.get("revision")
    if not isinstance(source, str) or not source:
        raise FileNotFoundError(f"the adapter {folder} does not name its base model; {FIX}")
    if is_hub_id(source):
        return source, {"revision": revision} if revision else {}
    if not Path(source).is_dir():
        seen_from = "" if Path(source).is_absolute() else f", seen from {Path.cwd()}"
        raise FileNotFoundError(
            f"the adapter {folder} was trained on the base model {source}, which is not here{seen_from}; {FIX}"
        )
    return source, {}


def _read_config(folder: Path, source: str, base: str | Path | None, loading: dict[str, Any]) -> Any:
    """The base's configuration, from which can be told whether the adapter fits."""
    try:
        return AutoConfig.from_pretrained(source, **{name: loading[name] for name in OF_CONFIG if name in loading})
    except OSError as error:
        if base is not None:
            raise
        raise OSError(
            f"the adapter {folder} was trained on the base model {source}, which is neither a folder here nor can be "
            f"loaded from the Hub; {FIX}. {error}"
        ) from error


def load_processor(adapter: str | Path, base: str | Path | None = None, **loading: Any) -> Any:
    """The processor of an adapter: its own if it brings one, else the base's.

    Args:
        adapter: a folder or a Hub id.
        base: folder or Hub id of the base model; by default what the adapter was trained on.
        **loading: passed to `AutoProcessor.from_pretrained`.

    Returns:
        The processor.

    Raises:
        OSError: if the base is needed and is not there.
    """
    folder = fetch(str(adapter))
    source, options = (str(folder), {}) if (folder / PROCESSOR_FILE).is_file() else _find_base(folder, base)
    return AutoProcessor.from_pretrained(source, **{**options, **loading})


def merge(
    adapter: str | Path,
    output: Path,
    base: str | Path | None = None,
    dtype: torch.dtype | None = None,
    trust_remote_code: bool = False,
) -> Merged:
    """Merge an adapter into its base model and write a complete checkpoint, which needs no PEFT.

    Args:
        adapter: a folder or a Hub id.
        output: the new folder; it appears when it is complete.
        base: folder or Hub id of the base model; by default what the adapter was trained on.
        dtype: type of the merged weights; by default that of the base. With float32 nothing is rounded.
        trust_remote_code: run code that the base brings; not needed for LLaDA-V checkpoints.

    Returns:
        Figures and notes.

    Raises:
        AdapterError: if the adapter does not fit, the base is quantised, or what comes out is not finite.
        FileExistsError: if something with content stands at `output`.
        OSError: if the base is not there, or the disk is too small.
    """
    check_free(output)
    folder = fetch(str(adapter))
    source, options = _find_base(folder, base)
    loading = {**options, "trust_remote_code": trust_remote_code}
    config = _read_config(folder, source, base, loading)
    _check_not_quantised(folder, output, source, config)
    check_fit(folder, config, source)
    stored = config.dtype if isinstance(config.dtype, torch.dtype) else torch.float32
    with torch.device("meta"):
        entries = sum(tensor.numel() for tensor in LladaVForMaskedDiffusion(copy.deepcopy(config)).parameters())
    check_space(output, entries * (dtype or stored).itemsize)
    processor = load_processor(folder, base, trust_remote_code=trust_remote_code)
    wide = torch.float32 if dtype is torch.float32 else "auto"
    model = AutoModelForImageTextToText.from_pretrained(source, dtype=wide, **loading)
    notes = compare_weights(folder, model)
    if trained_on := read_base(folder).get("quantization"):
        notes.append(
            f"the adapter was trained beside weights rounded to {trained_on}, and is merged into the unrounded ones; "
            "compare answers with those of the adapter on the quantised base"
        )
    merged = import_peft().PeftModel.from_pretrained(model, folder).merge_and_unload().to(dtype or model.dtype)
    _check_finite(folder, merged)
    with new_folder(output) as scratch:
        save_checkpoint(merged, processor, scratch)
        if (folder / RECIPE).is_file():
            shutil.copyfile(folder / RECIPE, scratch / RECIPE)
    return Merged(source, entries, merged.dtype, notes)


def _check_not_quantised(folder: Path, output: Path, source: str, config: Any) -> None:
    kind = quantization_of(config)
    if kind is not None:
        raise AdapterError(
            folder,
            f"cannot be merged into {source}",
            [
                f"its weights are quantised ({kind}), and what is added to them would be rounded again; merge into "
                f"the unquantised weights: lladav merge {folder} {output} --model UNQUANTISED"
            ],
        )


def _check_finite(folder: Path, merged: nn.Module) -> None:
    broken = [name for name, parameter in merged.named_parameters() if count_non_finite(parameter.detach())]
    if broken:
        raise AdapterError(
            folder,
            "was not merged",
            [
                f"{len(broken)} merged tensors hold NaN or infinity: {', '.join(broken[:3])}; the adapter is broken, "
                f"or its values are too large for {next(merged.parameters()).dtype}: try --dtype float32"
            ],
        )
