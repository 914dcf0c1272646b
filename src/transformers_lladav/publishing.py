"""Complete checkpoint folders: weights, configuration, processor, and the code that loads them without the package."""

import copy
import shutil
from pathlib import Path
from typing import Any

from transformers.dynamic_module_utils import get_relative_import_files

from .image_processing_lladav import LladaVImageProcessor
from .processing_lladav import LladaVProcessor

ENTRY_MODULES = ("configuration_lladav", "modeling_lladav", "processing_lladav", "image_processing_lladav")

AUTO_MAP = {
    "AutoConfig": "configuration_lladav.LladaVConfig",
    "AutoModel": "modeling_lladav.LladaVForMaskedDiffusion",
    "AutoModelForImageTextToText": "modeling_lladav.LladaVForMaskedDiffusion",
    "AutoModelForMultimodalLM": "modeling_lladav.LladaVForMaskedDiffusion",
    "AutoModelForCausalLM": "modeling_lladav.LladaVForMaskedDiffusion",
    "AutoModelForMaskedLM": "modeling_lladav.LladaVForMaskedDiffusion",
}


def code_files() -> list[Path]:
    """The modules that a checkpoint needs beside its weights.

    Returns:
        The entry modules and everything they import from each other, sorted by name.
    """
    folder = Path(__file__).parent
    entries = [folder / f"{name}.py" for name in ENTRY_MODULES]
    needed = {Path(path) for entry in entries for path in get_relative_import_files(entry)}
    return sorted({*entries, *needed})


def write_code_files(directory: Path) -> list[Path]:
    """Copy the code that `trust_remote_code=True` runs.

    Args:
        directory: an existing folder.

    Returns:
        The files written.
    """
    return [Path(shutil.copyfile(path, directory / path.name)) for path in code_files()]


def write_config(config: Any, directory: Path) -> None:
    """Write `config.json` with the map that Auto classes follow.

    Args:
        config: a [`LladaVConfig`]; it is not changed.
        directory: an existing folder.
    """
    config = copy.deepcopy(config)
    config.architectures = ["LladaVForMaskedDiffusion"]
    config.auto_map = dict(AUTO_MAP)
    config.save_pretrained(directory)


def write_processor(processor: Any, directory: Path) -> None:
    """Write `processor_config.json`, the chat template and the tokenizer, with the maps that Auto classes follow.

    Args:
        processor: a [`LladaVProcessor`].
        directory: an existing folder.
    """
    LladaVImageProcessor.register_for_auto_class()
    LladaVProcessor.register_for_auto_class()
    processor.save_pretrained(directory)


def save_checkpoint(model: Any, processor: Any, directory: Path) -> None:
    """Write a folder that loads with the package, and without it by `trust_remote_code=True`.

    Args:
        model: a [`LladaVForMaskedDiffusion`]; its tensors are written under their native names.
        processor: the [`LladaVProcessor`] that belongs to it.
        directory: the folder; it is made if missing.
    """
    model.save_pretrained(directory, save_original_format=False)
    write_config(model.config, directory)
    write_processor(processor, directory)
    write_code_files(directory)
