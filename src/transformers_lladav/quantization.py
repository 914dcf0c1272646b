"""Four-bit weights for the frozen language model: which layers are held so, and whether a model has such."""

from typing import Any

import torch

# With these full prefixes, transformers keeps what they name as it is; a bare "vision_tower" would match nothing, and
# any list replaces the rule that spares the head.
KEPT_AS_THEY_ARE = ("lm_head", "model.vision_tower", "model.multi_modal_projector")
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
    return str(settings.get("quant_method", "unknown"))
