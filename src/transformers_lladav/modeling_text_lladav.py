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
)
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs, auto_docstring
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from .configuration_lladav import LladaVConfig, LladaVTextConfig


class LladaVAttention(LlamaAttention):
    """Llama's attention with every position in view of every other."""

    def __init__(self, config: LladaVTextConfig, layer_idx: int) -> None:
        super().__init__(config, layer_idx)
        self.is_causal = False


class LladaVDecoderLayer(LlamaDecoderLayer):
    """Llama's layer around bidirectional attention."""

    def __init__(self, config: LladaVTextConfig, layer_idx: int) -> None:
        super().__init__(config, layer_idx)
        self.self_attn = LladaVAttention(config, layer_idx)


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
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutputWithPast:
        r"""
        conversation_ids (`torch.LongTensor` of shape `(batch, length)`, *optional*):
            Turn that each position belongs to. Given, position i sees position j only if turn(j) <= turn(i)
            (LLaDA-V, arXiv:2505.16933, section 4.4); not given, everything sees everything.
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
        position_embeddings = self.rotary_emb(hidden_states, position_ids=position_ids)
        for layer in self.layers:
            hidden_states = layer(
                hidden_states,
                attention_mask=mask,
                position_ids=position_ids,
                past_key_values=past_key_values,
                position_embeddings=position_embeddings,
                **kwargs,
            )
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
