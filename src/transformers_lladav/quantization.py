"""Weights of the language model in eight or four bits: which layers are held so, what they take, whether any are.

Four ways, by two libraries: bitsandbytes' NF4 (QLoRA, arXiv:2305.14314) and LLM.int8() (arXiv:2208.07339), and
torchao's weight-only integers.
"""

import importlib.util
import logging
from typing import Any

import torch

# With these full prefixes, transformers keeps what they name as it is; a bare "vision_tower" would match nothing, and
# any list replaces the rule that spares the head.
KEPT_AS_THEY_ARE = ("lm_head", "model.vision_tower", "model.multi_modal_projector")
# Names, with the library that each needs.
QUANTIZATIONS = {
    "nf4": "bitsandbytes", "int8": "bitsandbytes", "int8-weight-only": "torchao", "int4-weight-only": "torchao",
}  # fmt: skip
# QLoRA, arXiv:2305.14314, section 3: a constant of 8 bits for 64 weights, one of 32 bits for 256 such constants.
BLOCK, CONSTANTS = 64, 256
GROUP = 128  # weights that share a scale in torchao's four bits
COMPUTE_DTYPES = (torch.bfloat16, torch.float16, torch.float32)


def nf4_config(compute_dtype: torch.dtype) -> Any:
    """How QLoRA (arXiv:2305.14314) holds weights: NF4 in blocks of 64, the blocks' constants quantised once more.

    Only the linear layers of the language model become four-bit; tower, projector, head and embeddings stay.

    Args:
        compute_dtype: what weights are expanded to for a product.

    Returns:
        A `BitsAndBytesConfig`, for `from_pretrained(..., quantization_config=...)`.

    Raises:
        ImportError: if bitsandbytes is not installed.
        ValueError: for an element type that nothing can be computed in.
    """
    if compute_dtype not in COMPUTE_DTYPES:
        raise ValueError(
            f"compute_dtype={compute_dtype}; four-bit weights are expanded to a floating type: pass "
            f"{', '.join(str(dtype) for dtype in COMPUTE_DTYPES)}"
        )
    try:
        import bitsandbytes  # type: ignore[import-not-found]  # noqa: F401
    except ImportError as error:
        raise ImportError("four-bit weights need bitsandbytes: pip install 'transformers_lladav[qlora]'") from error
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=compute_dtype,
        llm_int8_skip_modules=list(KEPT_AS_THEY_ARE),
    )


def quantization_config(name: str, compute_dtype: torch.dtype, device: str = "cpu") -> Any:
    """How weights are quantised while they are loaded, for answering.

    Args:
        name: one of `QUANTIZATIONS`.
        compute_dtype: of what is not quantised.
        device: where the weights will be.

    Returns:
        For `from_pretrained(..., quantization_config=...)`.

    Raises:
        ImportError: if the library is not installed.
        ValueError: for an unknown name, or a device that cannot do it.
    """
    if name not in QUANTIZATIONS:
        raise ValueError(f"quantization={name!r} is not known; choose one of {', '.join(QUANTIZATIONS)}")
    package = QUANTIZATIONS[name]
    if importlib.util.find_spec(package) is None:
        raise ImportError(f"quantization={name!r} needs {package}: pip install 'transformers_lladav[quantized]'")
    if name == "int4-weight-only" and not device.startswith("cuda"):
        raise ValueError(f"quantization={name!r} needs a CUDA GPU, not device={device!r}; nf4 runs on CPUs as well")
    if name == "nf4":
        return nf4_config(compute_dtype)
    if name == "int8":
        from transformers import BitsAndBytesConfig

        # It warns of every layer that it computes in float16.
        logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=list(KEPT_AS_THEY_ARE))
    from torchao.quantization import (  # type: ignore[import-not-found, import-untyped, unused-ignore]
        Int4WeightOnlyConfig,
        Int8WeightOnlyConfig,
    )
    from transformers import TorchAoConfig

    if name == "int8-weight-only":
        kind = Int8WeightOnlyConfig()
    else:  # in the layout of a kernel that torch has itself
        kind = Int4WeightOnlyConfig(group_size=GROUP, int4_packing_format="tile_packed_to_4d")
    return TorchAoConfig(kind, modules_to_not_convert=list(KEPT_AS_THEY_ARE))


def matrix_bytes(name: str, rows: int, columns: int) -> int:
    """What a quantised matrix takes, its constants included.

    Args:
        name: one of `QUANTIZATIONS`.
        rows: output features.
        columns: input features.

    Returns:
        Bytes.
    """
    entries = rows * columns
    if name == "nf4":
        return nf4_bytes(entries)
    if name == "int8":
        return entries + 4 * rows  # the largest entry of each row
    if name == "int8-weight-only":
        return entries + 5 * rows  # a scale and a zero for each row
    return entries // 2 + 4 * (entries // GROUP)  # a scale and a zero for each group


def nf4_bytes(entries: int) -> int:
    """Bytes of a matrix in NF4 with double quantisation: 4.127 bits for each entry.

    Args:
        entries: of the matrix.

    Returns:
        Values, their blocks' constants and the constants of these.
    """
    blocks = -(-entries // BLOCK)
    return -(-entries // 2) + blocks + 4 * -(-blocks // CONSTANTS)


def is_quantized(model: Any) -> str | None:
    """Whether and how the weights of a model are quantised.

    Args:
        model: a transformers model, or a PEFT model around one.

    Returns:
        None for ordinary weights; otherwise "nf4", "fp4", "int8", or the method as its configuration names it.
    """
    found = getattr(model.config, "quantization_config", None)
    if found is None:
        return None
    settings: dict[str, Any] = found if isinstance(found, dict) else found.to_dict()
    if settings.get("load_in_4bit"):
        return str(settings.get("bnb_4bit_quant_type", "fp4"))
    if settings.get("load_in_8bit"):
        return "int8"
    method = settings.get("quant_method", "unknown")
    return str(getattr(method, "value", method))
