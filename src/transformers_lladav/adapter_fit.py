"""What an adapter was trained on, and whether it fits another base model: found out before any weights are touched."""

import copy
import hashlib
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from .adapter_checks import PREFIXES
from .card_facts import ADAPTER_CONFIG, ADAPTER_WEIGHTS, read_object
from .files import write_text
from .modeling_lladav import LladaVForMaskedDiffusion
from .trainable import PEFT_PREFIX, part_of
from .weights import pickle_problems

BASE_FILE = "base_model.json"
TEXT_SIZES = (
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
    "num_key_value_heads",
)  # fmt: skip
VISION_SIZES = (
    "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "image_size", "patch_size",
)  # fmt: skip
SAMPLES = 64  # values of a parameter that go into its fingerprint
SMALLEST = 2**-16  # of them; below, float16 has fewer digits than bfloat16
# The layers that are held in four or eight bits; their digest stands alone, so that the others can be compared then.
LAYERS = "language_layers"


class AdapterError(ValueError):
    """An adapter that does not fit, or cannot be used; the message lists the reasons.

    Attributes:
        problems: all of them.

    Args:
        source: the adapter.
        consequence: what did not happen because of them.
        problems: a sentence each.
    """

    def __init__(self, source: str | Path, consequence: str, problems: Iterable[str]) -> None:
        self.problems = list(problems)
        super().__init__(f"the adapter {source} {consequence}:\n" + "\n".join(f"- {text}" for text in self.problems))


def import_peft() -> Any:
    """The optional package that adapters need.

    Returns:
        The module.

    Raises:
        ImportError: with the fix, if it is not installed.
    """
    try:
        import peft
    except ImportError as error:
        raise ImportError("adapters need PEFT: pip install 'transformers_lladav[train]'") from error
    return peft


def describe_base(model: nn.Module) -> dict[str, Any]:
    """What an adapter needs to recognise its base model later.

    The fingerprints are digests, by part of the model, over the names, the shapes and up to 64 evenly spaced values
    of every parameter, rounded to bfloat16. So loads in float32 and in bfloat16 of the same stored weights agree,
    whatever type they are stored in; loads in float16 agree with them if bfloat16 is stored. They tell weights apart
    that were trained further, not ones in which somebody changed single values. A part that is quantised, sharded or
    not in memory has none.

    Args:
        model: a LLaDA-V, bare or with adapters, which are left out. If it will be sharded, describe it before.

    Returns:
        JSON: `name_or_path`, `commit`, `model_type`, `quantization`, `sizes` and `fingerprints`.
    """
    config: Any = model.config
    return {
        "name_or_path": getattr(config, "_name_or_path", "") or None,
        "commit": getattr(config, "_commit_hash", None),
        "model_type": config.model_type,
        "quantization": quantization_of(config),
        "sizes": _sizes(config),
        "fingerprints": _fingerprints(model),
    }


def write_base(model: nn.Module | dict[str, Any], folder: Path) -> None:
    """Write what an adapter was trained on beside it.

    Args:
        model: as for `describe_base`, or what that returned.
        folder: of the adapter.
    """
    description = model if isinstance(model, dict) else describe_base(model)
    write_text(folder / BASE_FILE, json.dumps(description, indent=2) + "\n")


def _sizes(config: Any) -> dict[str, Any]:
    parts = (("text_config", TEXT_SIZES), ("vision_config", VISION_SIZES))
    return {
        f"{part}.{name}": getattr(getattr(config, part, None), name, None) for part, names in parts for name in names
    }


def quantization_of(config: Any) -> str | None:
    """How the weights of a model are held.

    Args:
        config: of the model.

    Returns:
        Such as "nf4" or "int8"; None if they are not quantised.
    """
    settings = getattr(config, "quantization_config", None)
    if settings is None:
        return None
    settings = settings if isinstance(settings, dict) else settings.to_dict()
    if settings.get("load_in_4bit"):
        return str(settings.get("bnb_4bit_quant_type", "4 bits"))
    method = settings.get("quant_method")
    return "int8" if settings.get("load_in_8bit") else str(getattr(method, "value", method))


def _fingerprints(model: nn.Module) -> dict[str, str]:
    digests: dict[str, Any] = {}
    unknown = set()
    for name, parameter in sorted(_own_parameters(model)):
        layer = name.startswith("model.language_model.layers.") and name.endswith("_proj.weight")
        group = LAYERS if layer else part_of(name)
        if not _is_readable(parameter):
            unknown.add(group)
            continue
        values = parameter.detach().flatten()
        values = values[:: max(1, values.numel() // SAMPLES)][:SAMPLES].bfloat16().cpu()
        values = values.where(values.abs() >= SMALLEST, 0).contiguous()
        digest = digests.setdefault(group, hashlib.sha256())
        digest.update(f"{name} {list(parameter.shape)} ".encode() + values.view(torch.uint8).numpy().tobytes())
    return {group: digest.hexdigest() for group, digest in digests.items() if group not in unknown}


def _is_readable(parameter: nn.Parameter) -> bool:
    """Whether the values are here, as numbers: not quantised, offloaded, or sharded over devices."""
    sharded = hasattr(parameter, "device_mesh") or parameter.numel() == 0
    return parameter.is_floating_point() and not parameter.is_meta and not sharded


def _own_parameters(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """The parameters of a model by the names they had before adapters stood beside them, and none of an adapter."""
    for name, parameter in model.named_parameters():
        plain = name.removeprefix(PEFT_PREFIX)
        if ".modules_to_save." not in plain and not any(f".{prefix}" in plain for prefix in PREFIXES.values()):
            yield plain.replace(".base_layer.", ".").replace(".original_module.", "."), parameter


def check_fit(folder: Path, config: Any, base: str | None = None) -> None:
    """Refuse an adapter that does not fit a base model, from its configuration alone: no weights are needed.

    Args:
        folder: the adapter.
        config: of the base model.
        base: what the messages call it; by default its own name.

    Raises:
        AdapterError: naming every difference: model type, sizes, layers that do not exist, shapes.
    """
    check_files(folder)
    base = base or _name(config)
    recorded = read_base(folder)
    kind = recorded.get("model_type", "lladav")
    if config.model_type != kind:
        raise AdapterError(
            folder, f"does not fit {base}", [f"it is for a {kind!r} model, but {base} is a {config.model_type!r}"]
        )
    sizes = _sizes(config)
    problems = [
        f"{name} is {value} in the adapter, {sizes[name]} in the base"
        for name, value in recorded.get("sizes", {}).items()
        if name in sizes and value != sizes[name]
    ]
    problems += _tensor_problems(folder, config)
    if problems:
        raise AdapterError(folder, f"does not fit {base}", problems)


def check_base(folder: Path, model: nn.Module) -> list[str]:
    """Refuse an adapter that does not fit a model, and say where the model is not quite the one it was trained on.

    Args:
        folder: the adapter; without `base_model.json`, which others do not write, only its tensors are looked at.
        model: a LLaDA-V, bare or with adapters.

    Returns:
        A sentence if shapes agree but weights do not: a base that was trained further may be meant.

    Raises:
        AdapterError: as for `check_fit`.
    """
    config: Any = model.config
    check_fit(folder, config)
    return compare_weights(folder, model)


def compare_weights(folder: Path, model: nn.Module) -> list[str]:
    """Say where the weights of a model are not those that an adapter was trained on.

    Args:
        folder: the adapter.
        model: a LLaDA-V that it fits.

    Returns:
        A sentence, or nothing; nothing as well if the adapter does not say.
    """
    recorded = read_base(folder)
    theirs, ours = recorded.get("fingerprints", {}), _fingerprints(model)
    if other := [part.replace("_", " ") for part in ours if part in theirs and theirs[part] != ours[part]]:
        trained_on = recorded.get("name_or_path") or "another base"
        return [
            f"the adapter {folder} was trained on {trained_on}, and {_name(model.config)} has other weights in: "
            f"{', '.join(other)}; its answers may be worse than they were in training"
        ]
    return []


def _name(config: Any) -> str:
    return getattr(config, "_name_or_path", "") or "the base"


def read_base(folder: Path) -> dict[str, Any]:
    """Read what the training run wrote about the base.

    Args:
        folder: of the adapter.

    Returns:
        As `describe_base` returns it; nothing for adapters from elsewhere.

    Raises:
        ValueError: if the file cannot be read, or says something else.
    """
    if not (folder / BASE_FILE).is_file():
        return {}
    recorded = read_object(folder / BASE_FILE)
    for name in ("sizes", "fingerprints"):
        if not isinstance(recorded.get(name, {}), dict):
            raise ValueError(f"{folder / BASE_FILE} has {name}={recorded[name]!r:.80}, which is no object")
    return recorded


def check_files(folder: Path) -> None:
    """Refuse a folder without what an adapter consists of, and pickles.

    Args:
        folder: of the adapter.

    Raises:
        AdapterError: with the reason and the fix.
    """
    if not (folder / ADAPTER_CONFIG).is_file():
        reason = f"{ADAPTER_CONFIG} is missing; give the folder that the training run calls adapter"
        raise AdapterError(folder, "cannot be loaded", [reason])
    if not (folder / ADAPTER_WEIGHTS).is_file():
        pickles = pickle_problems(path.name for path in folder.glob("adapter_model*"))
        missing = f"{ADAPTER_WEIGHTS} is missing; save the adapter with PeftModel.save_pretrained"
        raise AdapterError(folder, "cannot be loaded", pickles or [missing])


def _tensor_problems(folder: Path, config: Any) -> list[str]:
    """Compare the tensors of an adapter with those that PEFT would put beside this base, by a model without memory."""
    stored = _stored_shapes(folder)
    settings = _read_settings(folder)
    if settings.is_prompt_learning:
        return [f"peft_type={settings.peft_type.value!r} is a prompt, not an adapter beside layers"]
    try:
        needed, allowed = _expected_shapes(settings, config)
    except ValueError as error:  # PEFT found no layer to put it beside
        targets = getattr(settings, "target_modules", None)
        return [f"target_modules={targets!r} fit no layer of the base: {' '.join(str(error).split())}"]
    except Exception as error:  # PEFT reckons with whatever a foreign file says
        return [f"PEFT cannot put it beside the base: {_in_words(error)}; is {ADAPTER_CONFIG} as it was saved?"]
    foreign = [_plain(name) for name in stored if name not in allowed]
    missing = [_plain(name) for name in needed if name not in stored]
    wrong = [
        f"{_plain(name)} is {list(shape)}, the base needs {list(allowed[name])}"
        for name, shape in stored.items()
        if shape != allowed.get(name, shape)
    ]
    found = (
        (foreign, f"of the adapter's {len(stored)} tensors have no place in the base"),
        (missing, f"of {len(needed)} tensors that the base has a place for are not in the adapter"),
        (wrong, f"of the adapter's {len(stored)} tensors have another shape"),
    )
    return [
        f"{len(names)} {what}: {', '.join(names[:3])}{', ...' * (len(names) > 3)}" for names, what in found if names
    ]


def _read_settings(folder: Path) -> Any:
    """What PEFT makes of an adapter's configuration."""
    peft = import_peft()
    read_object(folder / ADAPTER_CONFIG)  # says more of a file that is none
    try:
        return peft.PeftConfig.from_pretrained(folder)
    except Exception as error:  # PEFT looks up whatever a foreign file names
        reason = f"{ADAPTER_CONFIG} describes no adapter that PEFT knows: {_in_words(error)}"
        raise AdapterError(folder, "cannot be loaded", [reason]) from error


def _in_words(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


def _plain(name: str) -> str:
    return name.removeprefix(PEFT_PREFIX)


def _stored_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    file = folder / ADAPTER_WEIGHTS
    try:
        with safe_open(file, framework="pt") as handle:
            return {key: tuple(handle.get_slice(key).get_shape()) for key in handle.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise AdapterError(folder, "cannot be loaded", [f"{file.name} is truncated or damaged ({error})"]) from error


def _expected_shapes(settings: Any, config: Any) -> tuple[dict[str, tuple[int, ...]], dict[str, tuple[int, ...]]]:
    """The tensors that an adapter must have for a base, and those that it may have: embeddings can come along."""
    peft = import_peft()
    settings.base_model_name_or_path = None  # that of a model without weights
    with torch.device("meta"):
        bare = LladaVForMaskedDiffusion(copy.deepcopy(config))
    prepared = peft.get_peft_model(bare, settings, low_cpu_mem_usage=True)
    needed, allowed = (
        peft.get_peft_model_state_dict(prepared, save_embedding_layers=embeddings) for embeddings in (False, True)
    )
    return (
        {name: tuple(tensor.shape) for name, tensor in needed.items()},
        {name: tuple(tensor.shape) for name, tensor in allowed.items()},
    )
