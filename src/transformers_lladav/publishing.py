"""Complete checkpoint folders: weights, configuration, processor, and the code that loads them without the package."""

import copy
import shutil
from pathlib import Path
from typing import Any

import torch
from transformers.dynamic_module_utils import get_relative_import_files

from .generation_configuration_lladav import LladaVGenerationConfig
from .image_processing_lladav import LladaVImageProcessor
from .modeling_lladav import LladaVForMaskedDiffusion
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

ANSWER_LENGTH = 128
# In the order of `LladaVConfig.suppressed_token_ids`.
SUPPRESSED_TOKENS = ("<|endoftext|>", "<|startoftext|>", "<|start_header_id|>", "<|end_header_id|>")


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
    for name in ("is_local", "local_files_only"):  # transformers' notes on where it was loaded from
        processor.tokenizer.init_kwargs.pop(name, None)
    processor.save_pretrained(directory)


def build_processor(config: Any, tokenizer: Any) -> LladaVProcessor:
    """The processor of a checkpoint; the ids it settles are written into the configuration.

    Args:
        config: a [`LladaVConfig`]; its placeholder ids and number of producible tokens are set.
        tokenizer: LLaDA's tokenizer; the placeholders are added to it.

    Returns:
        The processor.

    Raises:
        ValueError: if a special token has another id than the configuration says.
        StrictDataclassError: if the embedding has no room for the placeholders.
    """
    expected = dict(zip(SUPPRESSED_TOKENS, config.suppressed_token_ids, strict=True))
    expected |= {"<|eot_id|>": config.text_config.eos_token_id, "<|mdm_mask|>": config.mask_token_id}
    vocabulary = tokenizer.get_vocab()
    wrong = [
        f"the tokenizer has {name} as {vocabulary.get(name)}, not as {number}"
        for name, number in expected.items()
        if vocabulary.get(name) != number
    ]
    if wrong:
        raise ValueError("\n".join(wrong))
    config.output_vocab_size = len(tokenizer)
    processor = LladaVProcessor(
        LladaVImageProcessor(
            size={"height": config.vision_config.image_size, "width": config.vision_config.image_size},
            patch_size=config.vision_config.patch_size,
            image_grid_pinpoints=config.image_grid_pinpoints,
            max_tiles=config.max_tiles,
            newline_position=config.newline_position,
        ),
        tokenizer,
    )
    config.image_token_id, config.video_token_id = processor.image_token_id, processor.video_token_id
    config.validate()
    return processor


def generation_defaults(config: Any) -> LladaVGenerationConfig:
    """The settings of the official demonstration, with the token ids of a checkpoint.

    Block and steps, there 128 as well, follow from the length: whoever asks for another length gets one block of it.

    Args:
        config: its configuration.

    Returns:
        What `generation_config.json` holds.
    """
    return LladaVGenerationConfig(
        max_new_tokens=ANSWER_LENGTH,
        eos_token_id=config.text_config.eos_token_id,
        pad_token_id=config.text_config.pad_token_id,
        bos_token_id=config.text_config.bos_token_id,
        mask_token_id=config.mask_token_id,
    )


def model_shapes(config: Any) -> dict[str, tuple[int, ...]]:
    """Shapes of a model's tensors, without making them.

    Args:
        config: its configuration.

    Returns:
        Shape by native name.

    Raises:
        ValueError: if the configuration describes no model that can be built.
    """
    try:
        with torch.device("meta"):
            model = LladaVForMaskedDiffusion(config)
    except Exception as error:  # an activation or a position encoding that nobody knows, sizes beyond all numbers
        raise ValueError(
            f"config.json describes no model that can be built: {type(error).__name__}: {error}"
        ) from error
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def write_all_but_weights(config: Any, processor: LladaVProcessor, directory: Path) -> None:
    """Write what a checkpoint consists of beside its weights: configurations, tokenizer, template, code.

    Args:
        config: the configuration.
        processor: the processor.
        directory: an existing folder.
    """
    write_config(config, directory)
    generation_defaults(config).save_pretrained(directory)
    write_processor(processor, directory)
    write_code_files(directory)


def save_checkpoint(
    model: Any, processor: Any, directory: Path, state_dict: dict[str, torch.Tensor] | None = None
) -> None:
    """Write a folder that loads with the package, and without it by `trust_remote_code=True`.

    Args:
        model: a [`LladaVForMaskedDiffusion`]; its tensors are written under their native names.
        processor: the [`LladaVProcessor`] that belongs to it.
        directory: the folder; it is made if missing.
        state_dict: tensors to write in place of the model's own, such as gathered or in another type.
    """
    model.save_pretrained(directory, state_dict=state_dict, save_original_format=False)
    write_config(model.config, directory)
    write_processor(processor, directory)
    write_code_files(directory)
