"""The bundled checkpoint before training: a tokenizer from the suite's own words, a processor, and random weights."""

from dataclasses import dataclass

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from . import suite
from .chat_template_lladav import build_chat_template
from .configuration_lladav import LladaVConfig
from .generation_configuration_lladav import LladaVGenerationConfig
from .image_processing_lladav import LladaVImageProcessor
from .modeling_lladav import LladaVForMaskedDiffusion
from .processing_lladav import LladaVProcessor

SYSTEM_PROMPT = "Look at the picture."
SPECIAL_TOKENS = (
    "<|startoftext|>", "<|endoftext|>", "<|mdm_mask|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>",
)  # fmt: skip
VOCABULARY = 560
# Names of places are one word, so that a fact about a shape always has three: of every three tokens that are learned
# in the first stage one or two are hidden, and what is left tells which shape is meant.
WORDS = r" ?(?:top|bottom) (?:left|right)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
BLOCK_LENGTH = 8
CANVAS = 48  # holds a caption of five objects


@dataclass(frozen=True)
class TinySizes:
    """How large the model is.

    Attributes:
        picture_side: pixels along one side of a picture; one tile, no tiling.
        patch_size: pixels along one side of a patch.
        vision_hidden: width of the vision tower.
        vision_layers: its layers.
        text_hidden: width of the language model.
        text_layers: its layers.
        heads: attention heads of both.
        mlp_ratio: width of the MLPs over the hidden width.
        seed: of the initial weights.
    """

    picture_side: int = suite.PICTURE_SIDE
    patch_size: int = 16
    vision_hidden: int = 128
    vision_layers: int = 4
    text_hidden: int = 128
    text_layers: int = 4
    heads: int = 4
    mlp_ratio: int = 3
    seed: int = 0

    def __post_init__(self) -> None:
        if self.picture_side % self.patch_size:
            raise ValueError(
                f"picture_side={self.picture_side} is not a multiple of patch_size={self.patch_size}; "
                f"pass picture_side={max(self.picture_side // self.patch_size, 1) * self.patch_size}"
            )

    @property
    def patches(self) -> int:
        """Along one side of a picture."""
        return self.picture_side // self.patch_size


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Train a byte-level BPE on the suite's wordings; special tokens have LLaDA's names.

    What signs say is not among them, so that every capital letter and digit is a token of its own.

    Returns:
        A tokenizer of a few hundred tokens that pads with `<|endoftext|>`.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORDS), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    roles = ["system\n\n", "user\n\n", "assistant\n\n", SYSTEM_PROMPT]
    tokenizer.train_from_iterator([*suite.all_texts(), *roles * 500], trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<|startoftext|>",
        eos_token="<|eot_id|>",
        pad_token="<|endoftext|>",
        mask_token="<|mdm_mask|>",
        extra_special_tokens=["<|start_header_id|>", "<|end_header_id|>"],
        clean_up_tokenization_spaces=False,
    )


def build_processor(sizes: TinySizes) -> LladaVProcessor:
    """The processor of the bundled checkpoint: pictures become one square tile each.

    Args:
        sizes: gives picture and patch size.

    Returns:
        A processor with its own tokenizer and a short system prompt.
    """
    image_processor = LladaVImageProcessor(
        size={"height": sizes.picture_side, "width": sizes.picture_side},
        patch_size=sizes.patch_size,
        image_grid_pinpoints=[],
        tiling="square",
    )
    return LladaVProcessor(image_processor, build_tokenizer(), chat_template=build_chat_template(SYSTEM_PROMPT))


def build_model(sizes: TinySizes, processor: LladaVProcessor) -> LladaVForMaskedDiffusion:
    """A freshly initialised model that fits the processor.

    Args:
        sizes: of the model, and the seed.
        processor: gives the token ids.

    Returns:
        The model in float32, with the generation settings that the checkpoint ships with.
    """
    tokenizer = processor.tokenizer
    token_id = dict(zip(SPECIAL_TOKENS, tokenizer.convert_tokens_to_ids(list(SPECIAL_TOKENS)), strict=True))
    config = LladaVConfig(
        text_config={
            "vocab_size": -(-len(tokenizer) // 8) * 8,
            "hidden_size": sizes.text_hidden,
            "intermediate_size": sizes.mlp_ratio * sizes.text_hidden,
            "num_hidden_layers": sizes.text_layers,
            "num_attention_heads": sizes.heads,
            "max_position_embeddings": 1024,
            # Narrow layers want larger weights than the 0.02 of wide ones: about 1 / sqrt(hidden size).
            "initializer_range": 0.06,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0},
            "bos_token_id": token_id["<|startoftext|>"],
            "eos_token_id": token_id["<|eot_id|>"],
            "pad_token_id": token_id["<|endoftext|>"],
        },
        vision_config={
            "hidden_size": sizes.vision_hidden,
            "intermediate_size": sizes.mlp_ratio * sizes.vision_hidden,
            "num_hidden_layers": sizes.vision_layers,
            "num_attention_heads": sizes.heads,
            "image_size": sizes.picture_side,
            "patch_size": sizes.patch_size,
            "vision_use_head": False,
        },
        image_token_id=processor.image_token_id,
        video_token_id=processor.video_token_id,
        mask_token_id=token_id["<|mdm_mask|>"],
        output_vocab_size=processor.image_token_id,
        suppressed_token_ids=[
            token_id[name] for name in ("<|endoftext|>", "<|startoftext|>", "<|start_header_id|>", "<|end_header_id|>")
        ],
        image_grid_pinpoints=[],
    )
    torch.manual_seed(sizes.seed)
    model = LladaVForMaskedDiffusion(config)
    model.generation_config = LladaVGenerationConfig(
        max_new_tokens=CANVAS,
        block_length=BLOCK_LENGTH,
        eos_token_id=token_id["<|eot_id|>"],
        pad_token_id=token_id["<|endoftext|>"],
        bos_token_id=token_id["<|startoftext|>"],
        mask_token_id=token_id["<|mdm_mask|>"],
    )
    return model
