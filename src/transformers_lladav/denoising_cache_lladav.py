"""Keys and values for denoising, in transformers' `Cache`: what a pass need not work out again.

In a bidirectional model the keys and values of every position depend on all others, so that nothing is past once a
token is written. What is remembered between steps is therefore an approximation (Fast-dLLM, arXiv:2505.22618,
section 3), unless it is worked out anew in each of them.
"""

from typing import Any

import torch
from transformers import Cache
from transformers.cache_utils import CacheLayerMixin


class LiveLayer(CacheLayerMixin):
    """Keys and values of a layer for whole sequences; a pass over some positions replaces those of these only."""

    is_sliding = False
    keys: Any
    values: Any

    def __init__(self) -> None:
        super().__init__()
        self.positions: torch.Tensor | None = None

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Nothing is set aside: the first pass is over whole sequences, whose keys and values are kept."""
        self.dtype, self.device = key_states.dtype, key_states.device
        self.is_initialized = True

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Take up the keys and values of a pass.

        Args:
            key_states: (batch, heads, positions of the pass, head size).
            value_states: the same.
            *args: unused.
            **kwargs: unused.

        Returns:
            Both for whole sequences, (batch, heads, length, head size).

        Raises:
            RuntimeError: if gradients are wanted, which cannot flow through what was replaced.
        """
        if key_states.requires_grad or value_states.requires_grad:
            raise RuntimeError(
                "a DenoisingCache replaces keys and values in place, through which no gradient flows; use "
                "torch.no_grad or pass no cache"
            )
        if self.positions is None:
            return self._take_all(key_states, value_states)
        where = self.positions[:, None, :, None]  # (batch, 1, positions, 1)
        self.keys.scatter_(2, where.expand_as(key_states), key_states)
        self.values.scatter_(2, where.expand_as(value_states), value_states)
        return self.keys, self.values

    def _take_all(self, key_states: torch.Tensor, value_states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Those of whole sequences; where they stand in memory, later ones do as well, as CUDA graphs ask for."""
        if self.is_initialized and self.keys.shape == key_states.shape:
            self.keys.copy_(key_states)
            self.values.copy_(value_states)
        else:
            self.lazy_initialization(key_states, value_states)
            self.keys, self.values = key_states, value_states
        return key_states, value_states

    def get_seq_length(self) -> int:
        """Positions that there are, seen or not."""
        return self.keys.shape[2] if self.is_initialized else 0

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """How many keys a query sees, and where they begin."""
        return (query_length if self.positions is None else self.get_seq_length()), 0

    def get_max_length(self) -> int:
        """No limit."""
        return -1

    def select(self, samples: torch.Tensor) -> None:
        """Keep some samples of the batch.

        Args:
            samples: (kept,), their rows.
        """
        self.keys, self.values = self.keys[samples], self.values[samples]


class DenoisingCache(Cache):
    """Keys and values of all layers between the steps of a denoising loop.

    Args:
        layers: how many the language model has.
    """

    layers: list[LiveLayer]

    def __init__(self, layers: int) -> None:
        super().__init__(layers=[LiveLayer() for _ in range(layers)])

    def look_at(self, positions: torch.Tensor | None) -> None:
        """Say which positions the next pass runs.

        Args:
            positions: (batch, positions), where in the sequences they stand; None for whole sequences. A position may
                occur twice, to fill up a row.

        Raises:
            ValueError: if there is no pass over whole sequences before it.
        """
        if positions is not None and not self.layers[0].is_initialized:
            raise ValueError("the first pass with a DenoisingCache must be over whole sequences; pass positions=None")
        for layer in self.layers:
            layer.positions = positions

    def select(self, samples: torch.Tensor) -> None:
        """Keep some samples of the batch.

        Args:
            samples: (kept,), their rows.
        """
        for layer in self.layers:
            layer.select(samples)

    def get_query_offset(self, layer_idx: int = 0) -> int:
        """Queries are numbered from 0: their places are in `position_ids`."""
        return 0


class KnownKeys(Cache):
    """Keys and values of one layer that are all there before its queries are.

    Args:
        keys: (batch, heads, length, head size).
        values: the same.
    """

    def __init__(self, keys: torch.Tensor, values: torch.Tensor) -> None:
        super().__init__(layers=[])
        self.known = keys, values

    def update(self, *args: Any, **kwargs: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """What is known, whatever is given.

        Args:
            *args: unused.
            **kwargs: unused.

        Returns:
            Keys and values.
        """
        return self.known

    def get_mask_sizes(self, query_length: int, layer_idx: int = 0) -> tuple[int, int]:
        """How many keys a query sees, and where they begin."""
        return self.known[0].shape[2], 0

    def get_query_offset(self, layer_idx: int = 0) -> int:
        """Queries are numbered from 0."""
        return 0


__all__ = ["DenoisingCache"]
