"""A processor for official checkpoints, which come with a tokenizer and nothing else."""

from typing import Any, NamedTuple

from transformers import PreTrainedTokenizerFast

from .configuration_lladav import LladaVConfig, LladaVTextConfig
from .image_processing_lladav import LladaVImageProcessor
from .official_config_lladav import translate_image_settings
from .official_folder_lladav import (
    OfficialCheckpointError,
    Source,
    read_official,
    read_vision_config,
    source_folder,
    stored_shapes,
)

# What an official configuration leaves to the defaults of `LladaVConfig`, by the names in the tokenizer.
OFFICIAL_IDS: dict[str, Any] = {
    "<|startoftext|>": LladaVTextConfig.bos_token_id,
    "<|endoftext|>": LladaVTextConfig.pad_token_id,
    "<|eot_id|>": LladaVTextConfig.eos_token_id,
    "<|mdm_mask|>": LladaVConfig.mask_token_id,
    **dict(zip(("<|start_header_id|>", "<|end_header_id|>"), LladaVConfig.suppressed_token_ids[2:], strict=True)),
}
# Options of the processor itself; a tokenizer would take the tokens among them for special tokens of its own.
PROCESSOR_OPTIONS = ("chat_template", "image_token", "video_token", "mask_token")


class Parts(NamedTuple):
    """What a processor is made of, in the order of its arguments."""

    image_processor: LladaVImageProcessor
    tokenizer: Any


def load_parts(source: Source, vision_config: Any = None, **options: Any) -> Parts | None:
    """The parts of an official checkpoint's processor.

    Args:
        source: a folder or a Hub id.
        vision_config: SigLIP configuration of the vision tower, if its tile size cannot be told otherwise.
        **options: those of `from_pretrained`.

    Returns:
        The parts; None if this is no official checkpoint or it has a processor.

    Raises:
        OfficialCheckpointError: if its configuration cannot be translated, or the tokenizer has other ids than the
            model's configuration.
    """
    official = read_official(source, **options)
    if official is None:
        return None
    image_names = LladaVImageProcessor.valid_kwargs.__annotations__
    image_options = {name: value for name, value in options.items() if name in image_names}
    try:
        shapes = stored_shapes(source_folder(source, options.get("subfolder")))
        settings = translate_image_settings(official, shapes, read_vision_config(vision_config))
    except ValueError as error:
        raise OfficialCheckpointError(f"{source} cannot be loaded: {error}") from error
    text_options = {name: value for name, value in options.items() if name not in {*image_names, *PROCESSOR_OPTIONS}}
    tokenizer = PreTrainedTokenizerFast.from_pretrained(source, **text_options)
    if problems := tokenizer_problems(tokenizer):
        raise OfficialCheckpointError(
            f"{source} has another tokenizer than the official release:\n"
            + "\n".join(f"- {problem}" for problem in problems)
            + "\nUse the tokenizer files of the release; if this one belongs to the weights, convert the checkpoint "
            "with conversion/convert_checkpoint.py, which takes the ids from the tokenizer"
        )
    return Parts(LladaVImageProcessor(**{**settings, **image_options}), tokenizer)


def tokenizer_problems(tokenizer: Any) -> list[str]:
    """Compare a tokenizer with the ids that a translated configuration has.

    Args:
        tokenizer: before the placeholders are added to it.

    Returns:
        One sentence per id that differs, and one if the placeholders would get other ids.
    """
    vocabulary = tokenizer.get_vocab()
    problems = [
        f"{token} is {vocabulary.get(token, 'missing')}, the model's configuration says {number}"
        for token, number in OFFICIAL_IDS.items()
        if vocabulary.get(token) != number
    ]
    if len(tokenizer) != LladaVConfig.output_vocab_size:
        problems.append(
            f"it has {len(tokenizer)} entries, the model's configuration says {LladaVConfig.output_vocab_size} and "
            f"puts <image> and <video> at {LladaVConfig.image_token_id} and {LladaVConfig.video_token_id}"
        )
    return problems
