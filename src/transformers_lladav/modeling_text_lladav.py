"""The bidirectional language model: LLaDA is Llama without the causal mask (arXiv:2502.09992, section 2.1)."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from transformers import Cache, PreTrainedModel
from transformers import initialization as init
from transformers.masking_utils import create_bidirectional_mask
from transformers.modeling_outputs import BaseModelOutputWithPast
from transformers.models.llama.modeling_llama import (
    LlamaAttention,
    LlamaDecoderLayer,
    LlamaRMSNorm,
    LlamaRotaryEmbedding,
    apply_rotary_pos_emb,
)
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs, auto_docstring
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from .configuration_lladav import LladaVConfig, LladaVTextConfig
from .denoising_cache_lladav import KnownKeys
from .loading_adapters_lladav import LEFT_OUT, with_whole_modules

Rotations = tuple[torch.Tensor, torch.Tensor]


class LladaVAttention(LlamaAttention):
    """Llama's attention with every position in view of every other."""

    def __init__(self, config: LladaVTextConfig, layer_idx: int) -> None:
        super().__init__(config, layer_idx)
        self.is_causal = False

    def keys_and_values(
        self, hidden_states: torch.Tensor, rotations: Rotations, past_key_values: Cache | None
    ) -> KnownKeys:
        """Keys and values of all positions, without any queries.

        Args:
            hidden_states: (batch, length, hidden).
            rotations: cosines and sines, (batch, length, head size) each.
            past_key_values: takes them up, and may know more.

        Returns:
            Both, as a cache that queries can be given.
        """
        shape = (*hidden_states.shape[:-1], -1, self.head_dim)
        keys = self.k_proj(hidden_states).view(shape).transpose(1, 2)
        values = self.v_proj(hidden_states).view(shape).transpose(1, 2)
        _, keys = apply_rotary_pos_emb(keys, keys, *rotations)
        if past_key_values is not None:
            keys, values = past_key_values.update(keys, values, self.layer_idx)
        return KnownKeys(keys, values)


class LladaVDecoderLayer(LlamaDecoderLayer):
    """Llama's layer around bidirectional attention."""

    def __init__(self, config: LladaVTextConfig, layer_idx: int) -> None:
        super().__init__(config, layer_idx)
        self.self_attn = LladaVAttention(config, layer_idx)

    def forward(
        self,
        hidden_states: torch.Tensor,
        position_embeddings: Rotations,
        past_key_values: Cache | None = None,
        output_positions: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> torch.Tensor:
        """Run the layer.

        Args:
            hidden_states: (batch, length, hidden).
            position_embeddings: cosines and sines, (batch, length, head size) each.
            past_key_values: keys and values of other positions.
            output_positions: (batch, positions), those that are wanted; the others give keys and values only. All by
                default.
            **kwargs: as of Llama's layer; a mask has a query for each wanted position.

        Returns:
            (batch, positions, hidden).
        """
        if output_positions is not None:
            normed = self.input_layernorm(hidden_states)
            past_key_values = self.self_attn.keys_and_values(normed, position_embeddings, past_key_values)
            hidden_states = take_positions(hidden_states, output_positions)
            cosines, sines = (take_positions(part, output_positions) for part in position_embeddings)
            position_embeddings = cosines, sines
        return super().forward(
            hidden_states, past_key_values=past_key_values, position_embeddings=position_embeddings, **kwargs
        )


def positions_from_mask(attention_mask: torch.Tensor) -> torch.Tensor:
    """Number the real tokens of every row from 0, wherever the padding stands, (batch, length)."""
    return (attention_mask.long().cumsum(dim=1) - 1).clamp(min=0)


def take_positions(values: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """Values at some positions of every sequence.

    Args:
        values: (batch, length, size); of one sequence for all, if batch is 1.
        positions: (batch, positions).

    Returns:
        (batch, positions, size).
    """
    values = values.expand(len(positions), -1, -1)
    return values.gather(1, positions[:, :, None].expand(-1, -1, values.shape[2]))


def mask_of_queries(mask: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """What some of the queries see.

    Args:
        mask: (batch, 1, length, keys), or 1 in the place of batch and length where all see the same.
        positions: (batch, positions), the queries.

    Returns:
        (batch, 1, positions, keys), or the mask if all queries see the same.
    """
    return mask if mask.shape[2] == 1 else take_positions(mask[:, 0], positions)[:, None]


@auto_docstring
class LladaVPreTrainedModel(PreTrainedModel):
    config: LladaVConfig
    base_model_prefix = "model"
    input_modalities: tuple[str, ...] = ("image", "video", "text")
    supports_gradient_checkpointing = True
    _no_split_modules = ["LladaVDecoderLayer"]
    _skip_keys_device_placement = ["past_key_values"]
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True
    _can_record_outputs = {"hidden_states": LladaVDecoderLayer, "attentions": LladaVAttention}

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if hasattr(module, "image_newline"):
            init.normal_(module.image_newline, mean=0.0, std=1 / math.sqrt(self.config.text_config.hidden_size))

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: Any, *args: Any, use_safetensors: bool | None = True, **kwargs: Any
    ) -> Any:
        """Load as every transformers model does, but from safetensors only.

        Args:
            pretrained_model_name_or_path: as in transformers.
            *args: as in transformers.
            use_safetensors: True; pickled weights are never opened, since they can run any code.
            **kwargs: as in transformers.

        Returns:
            The model.

        Raises:
            ValueError: with `use_safetensors=False`.
            OSError: if there are no safetensors files.
        """
        if use_safetensors is False:
            raise ValueError(
                "use_safetensors=False is refused: pickled weights can run any code when they are opened; save them "
                "as safetensors on a machine you can afford to lose"
            )
        return super().from_pretrained(pretrained_model_name_or_path, *args, use_safetensors=True, **kwargs)

    def save_pretrained(
        self, save_directory: Any, *args: Any, save_original_format: bool = False, **kwargs: Any
    ) -> None:
        """Save as every transformers model does, but under the native tensor names.

        Args:
            save_directory: the folder.
            *args: as in transformers.
            save_original_format: write the official tensor names instead. This is transformers' own default, and it
                applies to models that never were in the official layout as well.
            **kwargs: as in transformers.
        """
        super().save_pretrained(save_directory, *args, save_original_format=save_original_format, **kwargs)

    def load_adapter(
        self,
        peft_model_id: str | None = None,
        adapter_name: str | None = None,
        peft_config: Any = None,
        *args: Any,
        adapter_kwargs: dict[str, Any] | None = None,
        load_config: Any = None,
        **kwargs: Any,
    ) -> Any:
        """Load an adapter as every transformers model does, with all versions including what it trained whole.

        Args:
            peft_model_id: folder or Hub id of the adapter.
            adapter_name: what the model calls it; "default" without one.
            peft_config: its configuration, instead of the one in `peft_model_id`.
            *args: as in transformers.
            adapter_kwargs: as in transformers.
            load_config: as in transformers.
            **kwargs: as in transformers.

        Returns:
            What was loaded, missing and left over.

        Raises:
            ValueError: if there is no adapter, or the name is taken.
        """
        if LEFT_OUT:
            load_config = with_whole_modules(
                self, peft_model_id, adapter_name, peft_config, load_config, adapter_kwargs
            )
        options = {"adapter_kwargs": adapter_kwargs, "load_config": load_config, **kwargs}
        return super().load_adapter(peft_model_id, adapter_name, peft_config, *args, **options)


@auto_docstring(custom_intro="The bidirectional language model without its head.")
class LladaVTextModel(LladaVPreTrainedModel):
    config: LladaVTextConfig
    input_modalities = ("text",)

    def __init__(self, config: LladaVTextConfig) -> None:
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList([LladaVDecoderLayer(config, index) for index in range(config.num_hidden_layers)])
        self.norm = LlamaRMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.rotary_emb = LlamaRotaryEmbedding(config=config)
        self.gradient_checkpointing = False
        self.post_init()

    @merge_with_config_defaults
    @capture_outputs
    @auto_docstring
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        conversation_ids: torch.Tensor | None = None,
        output_positions: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutputWithPast:
        r"""
        conversation_ids (`torch.LongTensor` of shape `(batch, length)`, *optional*):
            Turn that each position belongs to. Given, position i sees position j only if turn(j) <= turn(i)
            (LLaDA-V, arXiv:2505.16933, section 4.4); not given, everything sees everything.
        output_positions (`torch.LongTensor` of shape `(batch, positions)`, *optional*):
            Positions whose last hidden states are wanted, which are then all that there are: the last layer works out
            keys and values of the others, and nothing else. All by default.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give exactly one of input_ids and inputs_embeds")
        if inputs_embeds is None:
            inputs_embeds = self.embed_tokens(input_ids)  # (batch, length, hidden)
        if position_ids is None:
            past = past_key_values.get_seq_length() if past_key_values is not None else 0
            position_ids = torch.arange(past, past + inputs_embeds.shape[1], device=inputs_embeds.device)[None]
        mask = create_bidirectional_mask(
            config=self.config,
            inputs_embeds=inputs_embeds,
            attention_mask=self._whole_mask(attention_mask, conversation_ids, inputs_embeds.dtype),
            past_key_values=past_key_values,
            and_mask_function=self._conversation_rule(conversation_ids),
        )
        hidden_states = inputs_embeds
        shared = {"position_ids": position_ids, "past_key_values": past_key_values, **kwargs}
        shared["position_embeddings"] = self.rotary_emb(hidden_states, position_ids=position_ids)
        for layer in self.layers[:-1]:
            hidden_states = layer(hidden_states, attention_mask=mask, **shared)
        narrowed = mask is None or (isinstance(mask, torch.Tensor) and mask.ndim == 4)
        if output_positions is not None and narrowed:
            mask = None if mask is None else mask_of_queries(mask, output_positions)
            shared["output_positions"] = output_positions
        hidden_states = self.layers[-1](hidden_states, attention_mask=mask, **shared)
        if output_positions is not None and not narrowed:
            hidden_states = take_positions(hidden_states, output_positions)
        return BaseModelOutputWithPast(last_hidden_state=self.norm(hidden_states), past_key_values=past_key_values)

    def _whole_mask(
        self, mask: torch.Tensor | None, conversation_ids: torch.Tensor | None, dtype: torch.dtype
    ) -> torch.Tensor | None:
        """A mask of query times key, (batch, 1, length, length), as the attention kernel takes it; others as given."""
        if mask is None or mask.ndim != 4:
            return mask
        kernel = self.config._attn_implementation or "eager"
        if kernel not in ("eager", "sdpa"):
            raise ValueError(
                f"a 4-D attention_mask was given, which attn_implementation={kernel!r} cannot take; load the model "
                'with attn_implementation="sdpa" or "eager"'
            )
        if conversation_ids is not None:
            raise ValueError(
                "conversation_ids and a 4-D attention_mask were given; say in the mask which turns see each other"
            )
        if kernel == "eager" and mask.dtype == torch.bool:  # it would be added as 0 and 1
            return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill(~mask, torch.finfo(dtype).min)
        return mask

    def _conversation_rule(self, conversation_ids: torch.Tensor | None) -> Callable[..., torch.Tensor] | None:
        if conversation_ids is None:
            return None
        if "flash" in (self.config._attn_implementation or ""):
            raise ValueError(
                f"conversation_ids need a mask that attn_implementation={self.config._attn_implementation!r} cannot "
                'take; load the model with attn_implementation="sdpa" or "flex_attention"'
            )

        def earlier_or_same_turn(
            batch_idx: torch.Tensor, head_idx: torch.Tensor, q_idx: torch.Tensor, kv_idx: torch.Tensor
        ) -> torch.Tensor:
            return conversation_ids[batch_idx, kv_idx] <= conversation_ids[batch_idx, q_idx]

        return earlier_or_same_turn


__all__ = ["LladaVPreTrainedModel", "LladaVTextModel"]
