"""What answering needs in memory: arithmetic on a configuration, without weights and without a GPU."""

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn

from .configuration_lladav import LladaVConfig
from .modeling_lladav import LladaVForMaskedDiffusion
from .quantization import KEPT_AS_THEY_ARE, QUANTIZATIONS, matrix_bytes

GIGABYTE = 10**9
HALF = 2  # bytes of an entry
# CUDA's context with the libraries' workspaces, and what the allocator cannot use.
CONTEXT_BYTES = GIGABYTE
CARDS = (8, 12, 16, 24, 48, 80)
# A large picture, a question, and an answer of 128 tokens.
POSITIONS = 3888


@dataclass(frozen=True)
class AnsweringMemory:
    """Bytes that an answer needs on a device: computed, not measured.

    Attributes:
        quantization: of the language model; None for half precision.
        weights: of everything.
        cache: keys and values of all positions, which the exact loop has no need of.
        working: activations of the widest layer.
    """

    quantization: str | None
    weights: int
    cache: int
    working: int

    @property
    def total(self) -> int:
        """All bytes, CUDA's included."""
        return self.weights + self.cache + self.working + CONTEXT_BYTES

    @property
    def card(self) -> int | None:
        """The smallest of `CARDS` that is large enough, in GB; None if none is."""
        return next((card for card in CARDS if self.total <= card * GIGABYTE), None)


def answering_memory(
    config: LladaVConfig, quantization: str | None = None, positions: int = POSITIONS
) -> AnsweringMemory:
    """Work out what an answer needs.

    Args:
        config: of the model.
        quantization: one of `QUANTIZATIONS`; None for half precision.
        positions: of prompt and answer together.

    Returns:
        The parts.
    """
    text: Any = config.text_config
    weights = weight_bytes(config, quantization)
    width = text.num_key_value_heads * (text.hidden_size // text.num_attention_heads)
    cache = 2 * HALF * text.num_hidden_layers * positions * width
    # In an MLP: its input, the residual, both branches and their product.
    working = HALF * positions * (2 * text.hidden_size + 3 * text.intermediate_size)
    return AnsweringMemory(quantization, weights, cache, working)


def weight_bytes(config: LladaVConfig, quantization: str | None = None) -> int:
    """What the weights take.

    Args:
        config: of the model.
        quantization: of the language model's linear layers; all else is in half precision.

    Returns:
        Bytes.
    """
    with torch.device("meta"):
        model = LladaVForMaskedDiffusion._from_config(config)
    found = HALF * sum(parameter.numel() for parameter in model.parameters())
    if quantization is None:
        return found
    for name, layer in model.named_modules():
        if isinstance(layer, nn.Linear) and not name.startswith(KEPT_AS_THEY_ARE):
            found += matrix_bytes(quantization, layer.out_features, layer.in_features) - HALF * layer.weight.numel()
    return found


def answering_rows(config: LladaVConfig) -> list[dict[str, Any]]:
    """Half precision and every way of quantising, for a table.

    Args:
        config: of the model.

    Returns:
        JSON.
    """
    found = [answering_memory(config, name) for name in (None, *QUANTIZATIONS)]
    return [{**asdict(row), "card": row.card, "total": row.total} for row in found]
