"""Official checkpoints as they are: what is asked of their files when they are loaded without having been converted.

Of the weights only the safetensors headers are read, and only in a local folder. For a Hub id nothing but
`config.json` decides, so that a configuration does not depend on what happens to be in the cache.
"""

import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

from safetensors import SafetensorError, safe_open
from transformers.utils import CONFIG_NAME, PROCESSOR_NAME, SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, cached_file

from .checkpoint_keys_lladav import native_key
from .official_config_lladav import OFFICIAL_MODEL_TYPE, translate_config

Source = str | os.PathLike[str]
LOOKUP_OPTIONS = (
    "cache_dir", "force_download", "proxies", "token", "revision", "local_files_only", "subfolder",
)  # fmt: skip
CARRIED_OVER = {"dtype": "dtype", "torch_dtype": "dtype", "_commit_hash": "_commit_hash"}


class OfficialCheckpointError(OSError):
    """An official checkpoint that cannot be loaded as it is.

    An `OSError`, as transformers' own are when files cannot be used: `AutoProcessor` takes a `ValueError` of a
    configuration to mean that there is no processor, and would give a bare tokenizer.
    """


def is_official(config: Mapping[str, Any]) -> bool:
    """Whether the content of a `config.json` is that of an official checkpoint."""
    return config.get("model_type") == OFFICIAL_MODEL_TYPE


def native_config(official: Mapping[str, Any], source: Source | None, vision_config: Any = None) -> dict[str, Any]:
    """An official `config.json` as the converter would write it.

    Args:
        official: its content.
        source: where it lies; a local folder is asked for the shapes of its tensors.
        vision_config: see `read_vision_config`.

    Returns:
        Content of a native `config.json`.

    Raises:
        OfficialCheckpointError: listing every field that cannot be translated, or if the vision sizes cannot be told.
    """
    try:
        translated = translate_config(official, stored_shapes(source), read_vision_config(vision_config))
    except ValueError as error:
        raise OfficialCheckpointError(f"the official checkpoint {source or ''} cannot be loaded: {error}") from error
    carried = {ours: official[name] for name, ours in CARRIED_OVER.items() if official.get(name) is not None}
    return {"model_type": "lladav", "architectures": ["LladaVForMaskedDiffusion"], **translated, **carried}


def read_vision_config(given: Any) -> dict[str, Any] | None:
    """The configuration of a vision tower, in whatever form it was given.

    Args:
        given: a configuration, its content, the path of its `config.json` or folder, a Hub id, or None. Of a SigLIP
            model, whose last vision layer LLaDA-V drops.

    Returns:
        Its content, or None.

    Raises:
        OSError: if there is no such file.
        ValueError: if the file holds no configuration.
        TypeError: for anything else.
    """
    if given is None:
        return None
    if hasattr(given, "to_dict"):
        return given.to_dict()
    if isinstance(given, Mapping):
        return dict(given)
    if not isinstance(given, str | os.PathLike):
        raise TypeError(
            f"vision_config is a {type(given).__name__}; give a configuration, its content as a dictionary, or the "
            "path of its config.json"
        )
    return _read_object(given if os.path.isfile(given) else cached_file(given, CONFIG_NAME))


def read_official(source: Source, **options: Any) -> dict[str, Any] | None:
    """The official `config.json` of a checkpoint that has no processor of its own.

    A native checkpoint has a processor, so that it costs one look for a small file that is loaded afterwards anyway.

    Args:
        source: a folder or a Hub id.
        **options: those of `from_pretrained`; the ones that say where files lie are used.

    Returns:
        Its content; None if there is a processor, or no official `config.json`.
    """
    if os.path.isfile(source):
        return None
    options = {name: options[name] for name in LOOKUP_OPTIONS if options.get(name) is not None}
    for cause in ("gated_repo", "missing_entries", "connection_errors"):
        options[f"_raise_exceptions_for_{cause}"] = False  # left to whoever loads the files
    if cached_file(source, PROCESSOR_NAME, **options) is not None:
        return None
    path = cached_file(source, CONFIG_NAME, **options)
    content = None if path is None else _read_object(path)
    return content if content is not None and is_official(content) else None


def source_folder(source: Source, subfolder: str | None) -> Source:
    """Where in a folder or Hub repository a checkpoint lies."""
    return os.path.join(source, subfolder) if subfolder else source


def stored_shapes(source: Source | None) -> dict[str, Sequence[int]]:
    """Shapes of the tensors in a folder, from the headers of its safetensors files.

    Args:
        source: a folder or a file in it; anything else holds nothing.

    Returns:
        Shape by native name; empty unless all files of the checkpoint are there.

    Raises:
        ValueError: naming a file that is damaged, or that the index seeks outside the folder.
    """
    if source is None:
        return {}
    folder = os.path.dirname(source) if os.path.isfile(source) else source
    files = [os.path.join(folder, SAFE_WEIGHTS_NAME)]
    index = os.path.join(folder, SAFE_WEIGHTS_INDEX_NAME)
    if os.path.isfile(index):
        weight_map = _read_object(index).get("weight_map")
        if not isinstance(weight_map, dict):
            raise ValueError(f"{index} has no weight_map from tensor to file name")
        names = sorted(set(map(str, weight_map.values())))
        if outside := [name for name in names if os.path.basename(name) != name or "\\" in name]:
            raise ValueError(f"{index} names {outside[0]!r}, which is not a file of its folder; it is refused")
        files = [os.path.join(folder, name) for name in names]
    if not all(os.path.isfile(file) for file in files):
        return {}
    return {native_key(name): shape for file in files for name, shape in _read_header(file).items()}


def _read_header(path: str) -> dict[str, Sequence[int]]:
    """Shape by official name, without reading a tensor."""
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"{path} is truncated or damaged; download it again") from error


def _read_object(path: Source) -> dict[str, Any]:
    try:
        with open(path, encoding="utf-8") as file:
            content = json.load(file)
    except (ValueError, RecursionError) as error:  # or is nested without end
        raise ValueError(f"{path} is no JSON: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__}, not an object")
    return content
