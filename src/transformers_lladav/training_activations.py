"""What autograd keeps of a training step, and what a layer needs on the way back: arithmetic on shapes.

T is the number of tokens on a device at a time, h the width of the language model, a and k the widths of its queries
and keys, m that of its MLP, b the bytes of an entry that is computed with (2 in half precision). Of a layer, autograd
keeps until the way back:

- two norms: their input in float32 and a factor per token, 2 T (4 h + 4); trained, also what the weight multiplies,
- attention (sdpa): queries, keys, values, output, b T (2 a + 2 k), a float32 per token and head, and the mask if there
  is one, b rows length^2,
- the MLP: gate, its activation and the other half, 3 b T m,
- the inputs of layers that are trained or have adapters; under autocast each such layer casts one of its own.

With checkpointing only the layer's input stays, and one layer at a time is computed again. A layer of the tower keeps
the like, if it gets gradients at all.
"""

import dataclasses
from typing import Any

import torch
from torch import nn

from .modeling_lladav import LladaVForMaskedDiffusion
from .recipes import Recipe
from .trainable import expected_trainable, lora_targets, part_of

# What a linear layer reads; layers that read the same tensor share it.
READS = {
    "q_proj": "norm", "k_proj": "norm", "v_proj": "norm", "o_proj": "attention", "out_proj": "attention",
    "gate_proj": "mlp norm", "up_proj": "mlp norm", "fc1": "mlp norm", "down_proj": "product", "fc2": "product",
    "linear_1": "features", "linear_2": "gelu", "lm_head": "hidden",
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Linear:
    """A linear layer: how many tokens go through it, and whether it has an adapter or is trained itself."""

    name: str
    inside: int
    outside: int
    tokens: int
    adapted: bool
    trained: bool

    @property
    def reads(self) -> str:
        """What goes into it; layers of a block that read the same share it."""
        kind = self.name.rpartition(".")[2]
        return READS.get(kind, kind)


class Activations:
    """A model of a configuration without weights, and what its training by a recipe keeps for the way back.

    Args:
        config: of the model.
        recipe: what is trained.
        length: tokens of a row.
        tiles: of the pictures of a row.
        devices: how many train together.
        sharded: whether parameters are dealt out to them.
        precision: "bf16", "fp16" or "fp32".
    """

    def __init__(
        self, config: Any, recipe: Recipe, length: int, tiles: int, devices: int, sharded: bool, precision: str
    ) -> None:
        self.text, self.vision, self.recipe = config.text_config, config.vision_config, recipe
        self.length, self.devices, self.sharded, self.precision = length, devices, sharded, precision
        self.rows = recipe.device_batch_size * (2 if recipe.complementary else 1)
        self.tokens = self.rows * length
        self.patches = self.rows * tiles * config.patches_per_side**2
        self.pixels = self.rows * tiles * 3 * self.vision.image_size**2
        self.masked = self.rows > 1 or recipe.packing or recipe.conversation_mask
        self.entry = 4 if precision == "fp32" else 2
        self.autocast = self.entry == 2 and not sharded  # FSDP2 casts the parameters itself
        with torch.device("meta"):
            self.model = LladaVForMaskedDiffusion(config)
        bare = dataclasses.replace(recipe, lora=None, quantization=None) if recipe.trains else None
        self.own = expected_trainable(self.model, bare) if bare else set()
        adapted = set(lora_targets(self.model, recipe.lora)) if recipe.lora else set()
        self.linears = [
            Linear(
                name,
                module.in_features,
                module.out_features,
                self.patches if part_of(f"{name}.") in ("vision_tower", "projector") else self.tokens,
                name in adapted,
                f"{name}.weight" in self.own,
            )
            for name, module in self.model.named_modules()
            if isinstance(module, nn.Linear)
        ]
        self.reached = {part_of(name) for name in self.own} | {part_of(f"{name}.") for name in adapted}

    @property
    def language_reached(self) -> bool:
        """Whether gradients go through the language model."""
        return bool(self.reached - {"head"})

    @property
    def vision_reached(self) -> bool:
        """Whether gradients reach the tower."""
        return "vision_tower" in self.reached

    def stream(self, part: str) -> int:
        """Bytes of an entry between layers: autocast leaves sums with float32 weights in float32."""
        trained = part in self.recipe.trains
        return 4 if self.autocast and trained else self.entry

    def kept_inputs(self, prefix: str) -> int:
        """Inputs of trained and adapted linear layers whose names begin so."""
        layers = [layer for layer in self.linears if layer.name.startswith(prefix)]
        dropout = self.recipe.lora is not None and self.recipe.lora.dropout > 0
        size, shared = 0, set()
        for layer in layers:
            row = layer.tokens * layer.inside
            if layer.adapted:
                size += self.adapter_activations(layer) + (row if dropout else 0)  # a byte for what was dropped
            if layer.adapted and (self.autocast or dropout):
                size += row * self.entry
            elif (layer.trained or layer.adapted) and layer.reads != "attention":  # which attention keeps
                again = layer.reads in shared and not (self.autocast and "norm" in layer.reads)
                size += 0 if again else row * self.entry
                shared.add(layer.reads)
        return size

    def adapter_activations(self, layer: Linear) -> int:
        """What the adapter of a layer keeps."""
        lora = self.recipe.lora
        assert lora is not None
        return self.entry * layer.tokens * (lora.rank + (2 * layer.outside if lora.dora else 0))

    def language_layer(self, index: int) -> int:
        """What a layer of the language model keeps."""
        text, tokens = self.text, self.tokens
        queries = text.num_attention_heads * text.head_dim
        keys = text.num_key_value_heads * text.head_dim
        norms = 2 * tokens * (4 * text.hidden_size + 4)
        if "language_model" in self.recipe.trains:
            norms += 2 * tokens * text.hidden_size * self.stream("language_model")
        attention = self.entry * tokens * 2 * (queries + keys) + 4 * tokens * text.num_attention_heads
        if self.masked:
            attention += self.entry * self.rows * self.length**2
        mlp = 3 * self.entry * tokens * text.intermediate_size
        return norms + attention + mlp + self.kept_inputs(f"model.language_model.layers.{index}.")

    def language_activations(self) -> int:
        """What the language model keeps, the loss included."""
        text, stream = self.text, self.stream("language_model")
        entries = self.tokens * text.hidden_size
        size = entries * stream + 12 * self.tokens  # what the loss reads, with positions and weights
        if not self.language_reached:
            return size
        size += 4 * entries + 4 * self.tokens  # the last norm
        if "language_model" in self.recipe.trains:
            size += entries * stream
        if self.masked:
            size += self.rows * self.length**2
        layers = range(text.num_hidden_layers)
        if self.recipe.gradient_checkpointing:
            return size + len(layers) * entries * stream
        size += 2 * self.length * text.head_dim * stream  # cosines and sines
        return size + sum(self.language_layer(index) for index in layers)

    def vision_layer(self, index: int) -> int:
        """What a layer of the tower keeps, if it gets gradients."""
        vision, patches = self.vision, self.patches
        norms = 2 * patches * (vision.hidden_size * (4 if self.autocast else self.entry) + 8)
        attention = patches * (4 * self.entry * vision.hidden_size + 4 * vision.num_attention_heads)
        mlp = self.entry * patches * vision.intermediate_size
        return norms + attention + mlp + self.kept_inputs(f"model.vision_tower.encoder.layers.{index}.")

    def vision_activations(self) -> int:
        """What the tower and the projector keep."""
        size = 0
        if self.vision_reached or "projector" in self.reached:
            size += self.entry * self.patches * self.text.hidden_size  # what the projector's GELU reads
            size += self.kept_inputs("model.multi_modal_projector.")
        if not self.vision_reached:
            return size
        layers = range(self.vision.num_hidden_layers)
        if "vision_tower" in self.recipe.trains:
            size += self.entry * self.pixels
        if self.recipe.gradient_checkpointing:
            return size + len(layers) * self.patches * self.vision.hidden_size * self.stream("vision_tower")
        return size + sum(self.vision_layer(index) for index in layers)

    def layer_working(self, part: str) -> int:
        """A layer at work: tensors in and around its MLP, and on the way back with checkpointing all that it keeps."""
        language = part == "language_model"
        sizes, tokens = (self.text, self.tokens) if language else (self.vision, self.patches)
        size = tokens * (2 * self.entry * sizes.intermediate_size + 2 * self.stream(part) * sizes.hidden_size)
        if language and self.recipe.quantization is not None:  # a matrix is expanded for its product
            size += self.entry * sizes.hidden_size * sizes.intermediate_size
        if not (self.language_reached if language else self.vision_reached):
            return size
        if self.autocast and any(layer.adapted for layer in self.linears):
            size += 4 * tokens * sizes.intermediate_size  # PEFT hands adapters their input in float32
        if not self.recipe.gradient_checkpointing:
            return size
        kept = self.language_layer if language else self.vision_layer
        return size + max(kept(index) for index in range(sizes.num_hidden_layers))
