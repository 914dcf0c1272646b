"""What a training run needs in memory: arithmetic on a configuration and a recipe, without weights and without a GPU.

What autograd keeps is worked out in `training_activations`; the tests compare it, and the whole sum, with what a step
really holds on a CPU. On a GPU it is computed, not measured.
"""

import dataclasses
import re
from typing import Any

from torch import nn

from .diffusion_lladav import CHUNK_ROWS
from .quantization import nf4_bytes
from .recipes import Recipe
from .trainable import part_of
from .training_activations import Activations, Linear
from .training_model import frozen_dtype

GIGABYTE = 10**9
# A loss chunk at its peak: log-probabilities, their gradient and that of the logits, in float32.
LOGIT_BYTES = 12
# CUDA's context with the libraries' workspaces, and what the allocator cannot use.
CONTEXT_BYTES = GIGABYTE
FRAGMENTATION = 0.05
CARDS = (16, 24, 48, 80)
NODE, NODE_CARD = 8, 80
# Tokens of a sample, with the tiles of a picture that leaves room for its text.
LENGTHS = {2048: 2, 4096: 5, 8192: 10}

LAYER = re.compile(r"model\.(language_model|vision_tower)\..*layers\.(\d+)\.")

LABELS = {
    "frozen_weights": "frozen weights",
    "trained_weights": "trained weights, float32",
    "gradients": "their gradients",
    "optimizer_states": "AdamW's two moments",
    "half_copies": "half-precision copies of trained weights",
    "communication": "buffers for other devices",
    "language_activations": "activations of the language model",
    "vision_activations": "activations of vision tower and projector",
    "working": "working memory of a layer or of the loss",
    "allowance": f"allowance: CUDA context {CONTEXT_BYTES // GIGABYTE} GB, fragmentation {100 * FRAGMENTATION:.0f} %",
}


@dataclasses.dataclass(frozen=True)
class MemoryEstimate:
    """Bytes that a device needs, by purpose: computed, not measured.

    Attributes:
        frozen_weights: of parameters that get no gradient, and of originals that PEFT keeps beside trained copies.
        trained_weights: in float32.
        gradients: in float32.
        optimizer_states: of AdamW.
        half_copies: casts of trained matrices that autocast keeps during a step.
        communication: gradient buckets of several devices, or what sharded training gathers.
        language_activations: kept for the way back.
        vision_activations: kept for the way back, of tower and projector.
        working: the larger of a layer's working memory and the loss's.
        allowance: for what is not in this arithmetic: 1 GB, and a twentieth of the rest.
    """

    frozen_weights: int
    trained_weights: int
    gradients: int
    optimizer_states: int
    half_copies: int
    communication: int
    language_activations: int
    vision_activations: int
    working: int
    allowance: int

    @property
    def total(self) -> int:
        """All bytes of a device."""
        return sum(dataclasses.astuple(self))

    def table(self) -> list[tuple[str, int]]:
        """What the bytes are for, without what needs none, and the total last."""
        parts = [(label, getattr(self, name)) for name, label in LABELS.items()]
        return [*((label, size) for label, size in parts if size), ("in all (computed, not measured)", self.total)]


@dataclasses.dataclass(frozen=True)
class Fit:
    """Whether a run fits, for a table.

    Attributes:
        recipe: its name.
        tokens: of a sample.
        tiles: of its pictures.
        checkpointing: whether activations are computed again on the way back.
        device_bytes: needed on a single device.
        cards: those of `CARDS` that are large enough, in GB.
        sharded_bytes: needed on each of eight devices under FSDP2; None for four-bit weights, which are not sharded.
        node: whether that fits on eight cards of 80 GB.
    """

    recipe: str
    tokens: int
    tiles: int
    checkpointing: bool
    device_bytes: int
    cards: tuple[int, ...]
    sharded_bytes: int | None
    node: bool


def estimate(
    config: Any,
    recipe: Recipe,
    tokens: int,
    tiles: int,
    devices: int = 1,
    sharded: bool = False,
    precision: str | None = None,
) -> MemoryEstimate:
    """What each device needs to train a LLaDA-V by a recipe.

    All tokens are taken as hidden ones that are learned, the worst case. Evaluations, which need less, and
    `torch.compile`, which saves some activations, are left out.

    Args:
        config: of the model.
        recipe: what is trained, and how.
        tokens: of a sample with its pictures, or of a packed row.
        tiles: of the pictures of a sample.
        devices: how many train together.
        sharded: deal parameters, gradients and moments out to the devices (FSDP2), instead of a copy for each.
        precision: "bf16", "fp16" or "fp32"; by default the recipe's, where "auto" counts as bf16.

    Returns:
        The parts and their sum.

    Raises:
        ValueError: for figures that are no sizes, sharding that cannot be, or adapters that match nothing.
    """
    for name, value, least in (("tokens", tokens, 1), ("tiles", tiles, 0), ("devices", devices, 1)):
        if value < least:
            raise ValueError(f"{name}={value}; pass at least {least}")
    if sharded and devices == 1:
        raise ValueError("sharded=True with devices=1: there is nobody to share with; pass devices=2 or more")
    if sharded and recipe.quantization is not None:
        raise ValueError(f"quantization={recipe.quantization!r} is not sharded; pass sharded=False, or lora instead")
    precision = precision or ("bf16" if recipe.precision == "auto" else recipe.precision)
    return _Run(config, recipe, tokens, tiles, devices, sharded, precision).estimate()


def fits(config: Any, recipe: Recipe) -> list[Fit]:
    """On which cards a recipe runs, one sample at a time.

    Args:
        config: of the model.
        recipe: what is trained.

    Returns:
        A row for each of `LENGTHS`, with checkpointing and without.
    """
    rows = []
    for tokens, tiles in LENGTHS.items():
        for checkpointing in (True, False):
            run = dataclasses.replace(
                recipe, gradient_checkpointing=checkpointing, global_batch_size=NODE, device_batch_size=1
            )
            alone = estimate(config, run, tokens, tiles).total
            can_shard = recipe.quantization is None
            shared = estimate(config, run, tokens, tiles, NODE, sharded=True).total if can_shard else None
            rows.append(
                Fit(
                    recipe=recipe.name,
                    tokens=tokens,
                    tiles=tiles,
                    checkpointing=checkpointing,
                    device_bytes=alone,
                    cards=tuple(card for card in CARDS if alone <= card * GIGABYTE),
                    sharded_bytes=shared,
                    node=shared is not None and shared <= NODE_CARD * GIGABYTE,
                )
            )
    return rows


class _Run(Activations):
    """A model of a configuration without weights, and what a recipe makes of it."""

    def estimate(self) -> MemoryEstimate:
        share = self.devices if self.sharded else 1
        trained = self.trained_entries()
        parts = {
            "frozen_weights": self.frozen_weights() // share,
            "trained_weights": 4 * trained // share,
            "gradients": 4 * trained // share,
            "optimizer_states": 8 * trained // share,
            "half_copies": self.half_copies(),
            "communication": self.communication(trained),
            "language_activations": self.language_activations(),
            "vision_activations": self.vision_activations(),
            "working": self.working(),
        }
        return MemoryEstimate(**parts, allowance=CONTEXT_BYTES + round(FRAGMENTATION * sum(parts.values())))

    # Weights

    def adapter_entries(self, layer: Linear) -> int:
        lora = self.recipe.lora
        if lora is None or not layer.adapted:
            return 0
        return lora.rank * (layer.inside + layer.outside) + (layer.outside if lora.dora else 0)

    def trained_entries(self) -> int:
        own = sum(parameter.numel() for name, parameter in self.model.named_parameters() if name in self.own)
        return own + sum(self.adapter_entries(layer) for layer in self.linears)

    def frozen_weights(self) -> int:
        kept = self.own if self.recipe.lora is None else set()  # PEFT trains a copy and keeps the original
        four_bit = {
            f"{layer.name}.weight"
            for layer in self.linears
            if self.recipe.quantization is not None and part_of(f"{layer.name}.") == "language_model"
        }
        frozen_entry = frozen_dtype(self.recipe, self.precision, self.sharded).itemsize
        return sum(
            nf4_bytes(parameter.numel()) if name in four_bit else frozen_entry * parameter.numel()
            for name, parameter in self.model.named_parameters()
            if name not in kept
        )

    def half_copies(self, prefix: str = "") -> int:
        """Autocast's copies of trained matrices whose names begin so."""
        if not self.autocast:
            return 0
        modules = dict(self.model.named_modules())
        cast = [
            parameter.numel()
            for name, parameter in self.model.named_parameters()
            if name in self.own
            and name.startswith(prefix)
            and isinstance(modules.get(name.rpartition(".")[0]), nn.Linear | nn.Conv2d)
        ]
        adapters = [self.adapter_entries(layer) for layer in self.linears if layer.name.startswith(prefix)]
        return 2 * (sum(cast) + sum(adapters))

    def communication(self, trained: int) -> int:
        if self.devices == 1:
            return 0
        if not self.sharded:
            return 4 * trained  # buckets that are reduced over the devices
        groups: dict[str, list[int]] = {}
        for name, parameter in self.model.named_parameters():
            match = LAYER.match(name)
            sizes = groups.setdefault(match[0] if match else "", [0, 0])
            sizes[0] += parameter.numel()
            sizes[1] += parameter.numel() if name in self.own else 0
        outside = groups.pop("", [0, 0])
        # All that is in no layer, a layer and the next one; gradients before they are dealt out.
        gathered = outside[0] + 2 * max(sizes[0] for sizes in groups.values())
        return self.entry * (gathered + outside[1] + max(sizes[1] for sizes in groups.values()))

    # What is there for a moment

    def working(self) -> int:
        """The larger of the loss's and a layer's, beyond what stays; other layers' copies are gone then."""
        loss = LOGIT_BYTES * min(CHUNK_ROWS, self.tokens) * self.text.vocab_size
        layers = max(self.layer_working("language_model"), self.layer_working("vision_tower"))
        if self.recipe.gradient_checkpointing:
            layers += self.half_copies("model.language_model.layers.0.") - self.half_copies()
        return max(loss, layers)
