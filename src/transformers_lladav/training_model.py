"""A checkpoint as a recipe wants it: element types, quantisation, activation checkpointing, adapters."""

from dataclasses import dataclass
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor
from transformers.modeling_layers import GradientCheckpointingLayer

from .adapter_fit import describe_base
from .recipes import Recipe
from .trainable import prepare_trainable

HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass
class Prepared:
    """A model that is ready for training.

    Attributes:
        model: a LLaDA-V, or the PEFT model around it.
        processor: its processor.
        source: folder or Hub id it came from.
        precision: "bf16", "fp16" or "fp32".
        base: what an adapter needs to recognise the model later; see `adapter_fit.describe_base`.
        stored_dtype: of most weights of the checkpoint, which a complete model is saved in.
    """

    model: Any
    processor: Any
    source: str
    precision: str
    base: dict[str, Any]
    stored_dtype: torch.dtype

    @property
    def bare(self) -> Any:
        """The LLaDA-V itself, whatever is around it."""
        return self.model.get_base_model() if hasattr(self.model, "peft_config") else self.model


def choose_precision(recipe: Recipe, device: torch.device) -> str:
    """What a device computes in.

    Args:
        recipe: says what is wanted; "auto" is bf16 on a GPU that has it, fp16 on another, and fp32 on a CPU.
        device: where training runs.

    Returns:
        "bf16", "fp16" or "fp32".

    Raises:
        ValueError: if the device cannot do it.
    """
    on_gpu = device.type == "cuda"
    if recipe.precision != "auto":
        if recipe.precision == "fp16" and not on_gpu:
            raise ValueError(f'precision="fp16" needs a GPU, not {device.type}; pass precision="bf16" or "fp32"')
        if recipe.precision == "bf16" and on_gpu and not torch.cuda.is_bf16_supported(including_emulation=False):
            raise ValueError(
                f'precision="bf16": {torch.cuda.get_device_name()} has no bfloat16; pass precision="fp16"'
            )
        return recipe.precision
    if on_gpu:
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    return "bf16" if recipe.quantization else "fp32"


def frozen_dtype(recipe: Recipe, precision: str, sharded: bool = False) -> torch.dtype:
    """The element type that weights are held in while they are frozen; what is trained is always in float32.

    Args:
        recipe: if it trains the language model itself, all is loaded in float32.
        precision: from `choose_precision`.
        sharded: whether parameters are sharded over devices, which needs one type for all.

    Returns:
        The type.
    """
    if precision == "fp32" or sharded or "language_model" in recipe.trains:
        return torch.float32
    return HALF[precision]


def load_for_training(
    source: str, recipe: Recipe, device: torch.device, trust_remote_code: bool = False, sharded: bool = False
) -> Prepared:
    """Load a checkpoint and make exactly what the recipe says trainable.

    Args:
        source: folder or Hub id of a LLaDA-V.
        recipe: the recipe.
        device: where it will be trained; four-bit weights are made there.
        trust_remote_code: run code that the checkpoint brings.
        sharded: whether parameters will be sharded over devices.

    Returns:
        Model and processor.

    Raises:
        ImportError: if the recipe needs a package that is missing.
        OSError: if there is no such checkpoint.
        ValueError: if it is no LLaDA-V, or the recipe does not go with it or with the device.
    """
    precision = choose_precision(recipe, device)
    config = AutoConfig.from_pretrained(source, trust_remote_code=trust_remote_code)
    _check_config(config, source, recipe)
    options: dict[str, Any] = {"dtype": frozen_dtype(recipe, precision, sharded)}
    if recipe.quantization is not None:
        from .quantization import nf4_config

        options |= {"quantization_config": nf4_config(HALF[precision]), "device_map": {"": device}}
    model = AutoModelForImageTextToText.from_pretrained(source, trust_remote_code=trust_remote_code, **options)
    processor = AutoProcessor.from_pretrained(source, trust_remote_code=trust_remote_code)
    if recipe.gradient_checkpointing:
        _enable_checkpointing(model)
    if recipe.compile:
        _compile_layers(model)
    stored = config.dtype if isinstance(config.dtype, torch.dtype) else torch.float32
    base = describe_base(model)  # now, while all weights are here and as they were stored
    torch.manual_seed(recipe.seed)  # adapters begin with weights that are drawn
    return Prepared(prepare_trainable(model, recipe), processor, source, precision, base, stored)


def _check_config(config: Any, source: str, recipe: Recipe) -> None:
    if config.model_type not in ("lladav", "llava_llada"):  # native and official layout
        raise ValueError(f"{source} holds a {config.model_type!r} model; give a LLaDA-V checkpoint")
    if getattr(config, "quantization_config", None) is not None:
        raise ValueError(
            f"{source} holds quantised weights, which the recipe {recipe.name!r} cannot train; give the checkpoint "
            "they were made from, and the recipe qlora if it is to be held in four bits"
        )


def _compile_layers(model: Any) -> None:
    """Compile every layer by itself; what is around them, with its many shapes, stays as it is.

    In place, so that the names of the weights stay too.
    """
    for module in model.modules():
        if isinstance(module, GradientCheckpointingLayer):  # the base class of transformers' layers
            module.compile(dynamic=True)


def _enable_checkpointing(model: Any) -> None:
    """Compute activations again on the way back, in every layer of tower and language model."""
    options = {"use_reentrant": False}  # gradients reach adapters although the embeddings are frozen
    if hasattr(model, "activation_checkpointing_enable"):  # transformers 5.20 and later
        model.activation_checkpointing_enable(activation_checkpointing_kwargs=options)
    else:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=options)
