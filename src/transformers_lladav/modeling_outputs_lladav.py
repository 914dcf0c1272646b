"""What the models return."""

from dataclasses import dataclass

import torch
from transformers import Cache
from transformers.modeling_outputs import BaseModelOutputWithPast, ModelOutput


@dataclass
class LladaVModelOutput(BaseModelOutputWithPast):
    """Output of [`LladaVModel`].

    Args:
        last_hidden_state (`torch.FloatTensor`, *optional*):
            (batch, length, hidden), after the last norm.
        image_hidden_states (`torch.FloatTensor`, *optional*):
            (tokens of all pictures, hidden), in the order of the pictures.
        video_hidden_states (`torch.FloatTensor`, *optional*):
            (tokens of all videos, hidden).
    """

    image_hidden_states: torch.Tensor | None = None
    video_hidden_states: torch.Tensor | None = None


@dataclass
class LladaVMaskedDiffusionOutput(ModelOutput):
    """Output of [`LladaVForMaskedDiffusion`].

    Args:
        loss (`torch.FloatTensor`, *optional*):
            Scalar, when labels were given.
        logits (`torch.FloatTensor`, *optional*):
            (batch, positions, vocabulary); None when labels were given without `logits_to_keep`.
        past_key_values (`torch.FloatTensor`, *optional*):
            The cache, if one was used.
        hidden_states (`torch.FloatTensor`, *optional*):
            Tuple of (batch, length, hidden), the embeddings and each layer's output.
        attentions (`torch.FloatTensor`, *optional*):
            Tuple of (batch, heads, length, length), with eager attention.
        image_hidden_states (`torch.FloatTensor`, *optional*):
            (tokens of all pictures, hidden).
        video_hidden_states (`torch.FloatTensor`, *optional*):
            (tokens of all videos, hidden).
    """

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    past_key_values: Cache | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None
    image_hidden_states: torch.Tensor | None = None
    video_hidden_states: torch.Tensor | None = None
