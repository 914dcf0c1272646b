"""Hyper-parameters of LLaDA-V: sizes, token ids and picture geometry, checked when they are made."""

import math
import os
from typing import Any, Literal

from huggingface_hub.dataclasses import strict
from huggingface_hub.errors import StrictDataclassError
from transformers import CONFIG_MAPPING, AutoConfig, PreTrainedConfig
from transformers.utils import auto_docstring

from .official_config_lladav import OFFICIAL_MODEL_TYPE, SIGLIP2_SO400M
from .official_folder_lladav import is_official, native_config, source_folder
from .tiling_lladav import DEFAULT_PINPOINTS

TEXT_SIZES = (
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
    "max_position_embeddings",
)  # fmt: skip


def _check_whole(config: Any, names: tuple[str, ...]) -> None:
    """Refuse sizes that are no whole numbers above 0, before anything divides by them."""
    for name in names:
        value = getattr(config, name, None)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"{name}={value!r:.80} must be a whole number of at least 1")


@auto_docstring(checkpoint="GSAI-ML/LLaDA-V")
@strict
class LladaVTextConfig(PreTrainedConfig):
    r"""
    Sizes of the bidirectional language model. The defaults are those of LLaDA-8B (arXiv:2502.09992).

    Example:

    ```python
    >>> from transformers_lladav import LladaVTextConfig

    >>> LladaVTextConfig().num_hidden_layers
    32
    ```"""

    model_type = "lladav_text"
    base_config_key = "text_config"
    default_theta = 500000.0
    base_model_tp_plan = {
        "layers.*.self_attn.q_proj": "colwise",
        "layers.*.self_attn.k_proj": "colwise",
        "layers.*.self_attn.v_proj": "colwise",
        "layers.*.self_attn.o_proj": "rowwise",
        "layers.*.mlp.gate_proj": "colwise",
        "layers.*.mlp.up_proj": "colwise",
        "layers.*.mlp.down_proj": "rowwise",
    }
    base_model_pp_plan = {
        "embed_tokens": (["input_ids"], ["inputs_embeds"]),
        "layers": (["hidden_states", "attention_mask"], ["hidden_states"]),
        "norm": (["hidden_states"], ["hidden_states"]),
    }

    vocab_size: int = 126464
    hidden_size: int = 4096
    intermediate_size: int = 12288
    num_hidden_layers: int = 32
    num_attention_heads: int = 32
    num_key_value_heads: int | None = None
    head_dim: int | None = None
    hidden_act: str = "silu"
    max_position_embeddings: int = 16384
    initializer_range: float = 0.02
    rms_norm_eps: float = 1e-5
    rope_parameters: dict | None = None
    attention_bias: bool = False
    attention_dropout: float | int = 0.0
    mlp_bias: bool = False
    use_cache: bool = False
    bos_token_id: int | None = 126080
    eos_token_id: int | list[int] | None = 126348
    pad_token_id: int | None = 126081
    tie_word_embeddings: bool = False

    def __post_init__(self, **kwargs: Any) -> None:
        _check_whole(self, TEXT_SIZES)
        if self.num_key_value_heads is None:
            self.num_key_value_heads = self.num_attention_heads
        if self.head_dim is None:
            self.head_dim = self.hidden_size // self.num_attention_heads
        super().__post_init__(**kwargs)

    def validate_architecture(self) -> None:
        """Check that the sizes fit each other; called by `strict` after construction.

        Raises:
            ValueError: if a size is not above 0, a number is not finite, the heads do not divide the hidden size or
                the key-value heads do not divide the heads.
        """
        _check_whole(self, (*TEXT_SIZES, "num_key_value_heads"))
        if not 0 < self.rms_norm_eps <= 1:
            raise ValueError(f"rms_norm_eps={self.rms_norm_eps} must be above 0 and at most 1")
        if not 0 <= self.initializer_range < math.inf:
            raise ValueError(f"initializer_range={self.initializer_range} must be a finite number of at least 0")
        if self.hidden_size % self.num_attention_heads != 0:
            raise ValueError(
                f"hidden_size={self.hidden_size} is not a multiple of num_attention_heads={self.num_attention_heads}"
            )
        if self.num_key_value_heads is not None and self.num_attention_heads % self.num_key_value_heads != 0:
            raise ValueError(
                f"num_attention_heads={self.num_attention_heads} is not a multiple of "
                f"num_key_value_heads={self.num_key_value_heads}"
            )
        _check_whole(self, ("head_dim",))


@auto_docstring(checkpoint="GSAI-ML/LLaDA-V")
@strict
class LladaVConfig(PreTrainedConfig):
    r"""
    mask_token_id (`int`, *optional*, defaults to 126336):
        The token that stands for "not known yet"; answers start as a row of it.
    output_vocab_size (`int`, *optional*, defaults to 126349):
        Number of leading vocabulary entries that generation may produce; the rest are placeholders and unused rows.
    suppressed_token_ids (`list[int]`, *optional*, defaults to `[126081, 126080, 126346, 126347]`):
        Tokens that generation never writes: end of text, start of text and the two header marks.
    image_grid_pinpoints (`list[list[int]]`, *optional*):
        Canvases a picture may be tiled on, as [height, width] in multiples of the tile size; 1 x 1 to 6 x 6 tiles by
        default. An empty list turns tiling off: every picture is one tile, padded to a square.
    max_tiles (`int`, *optional*, defaults to 4):
        A tiled picture's feature map is shrunk to about the area of this many tiles ("anyres_max_4").
    newline_position (`str`, *optional*, defaults to `"grid"`):
        Where a video gets newline vectors: "grid", "frame", "one_token" or "no_token".
    single_tile_newline (`bool`, *optional*, defaults to `True`):
        Whether a picture of one tile ends with a newline vector, as in training.

    Example:

    ```python
    >>> from transformers_lladav import LladaVConfig

    >>> LladaVConfig().vision_config.num_hidden_layers
    26
    ```"""

    model_type = "lladav"
    sub_configs = {"text_config": LladaVTextConfig, "vision_config": AutoConfig}

    text_config: dict | PreTrainedConfig | None = None
    vision_config: dict | PreTrainedConfig | None = None
    image_token_id: int = 126349
    video_token_id: int = 126350
    mask_token_id: int = 126336
    output_vocab_size: int | None = 126349
    suppressed_token_ids: list[int] | tuple[int, ...] = (126081, 126080, 126346, 126347)
    projector_hidden_act: str = "gelu"
    multimodal_projector_bias: bool = True
    image_grid_pinpoints: list | None = None
    max_tiles: int = 4
    newline_position: Literal["grid", "frame", "one_token", "no_token"] = "grid"
    single_tile_newline: bool = True
    tie_word_embeddings: bool = False

    def __post_init__(self, **kwargs: Any) -> None:
        if self.text_config is None:
            self.text_config = LladaVTextConfig()
        elif isinstance(self.text_config, dict):
            self.text_config = LladaVTextConfig(**self.text_config)
        if self.vision_config is None:
            self.vision_config = dict(SIGLIP2_SO400M)
        if isinstance(self.vision_config, dict):
            sizes = dict(self.vision_config)
            kind = sizes.pop("model_type", SIGLIP2_SO400M["model_type"])
            if not isinstance(kind, str) or kind not in CONFIG_MAPPING:
                raise ValueError(
                    f"vision_config has model_type={kind!r:.80}; LLaDA-V's tower is a {SIGLIP2_SO400M['model_type']!r}"
                )
            self.vision_config = CONFIG_MAPPING[kind](**sizes)
        if self.image_grid_pinpoints is None:
            self.image_grid_pinpoints = [list(size) for size in DEFAULT_PINPOINTS]
        self.suppressed_token_ids = list(self.suppressed_token_ids)
        if self.output_vocab_size is None:
            self.output_vocab_size = self.text_config.vocab_size
        super().__post_init__(**kwargs)

    @classmethod
    def get_config_dict(
        cls, pretrained_model_name_or_path: str | os.PathLike, **kwargs: Any
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Read `config.json`; that of an official checkpoint is translated.

        Args:
            pretrained_model_name_or_path: a folder, a file or a Hub id.
            **kwargs: those of transformers; with an official checkpoint also `vision_config`, the configuration of
                its SigLIP tower, for towers whose number of heads is not known.

        Returns:
            The content in the words of this class, and what is left of `**kwargs`.

        Raises:
            OfficialCheckpointError: if an official configuration cannot be translated.
        """
        content, unused = super().get_config_dict(pretrained_model_name_or_path, **kwargs)
        if is_official(content):
            source = source_folder(pretrained_model_name_or_path, kwargs.get("subfolder"))
            content = native_config(content, source, unused.pop("vision_config", None))
        return content, unused

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """Build a configuration from the content of a `config.json`, native or official.

        Args:
            config_dict: the content.
            **kwargs: as for `get_config_dict`; the tensors that tell an official tower's sizes are looked for in
                `name_or_path`.

        Returns:
            The configuration, and with `return_unused_kwargs` what is left of `**kwargs`.

        Raises:
            OfficialCheckpointError: if an official configuration cannot be translated.
            ValueError: if a native one cannot be used.
        """
        if is_official(config_dict):
            config_dict = native_config(config_dict, kwargs.get("name_or_path"), kwargs.pop("vision_config", None))
        try:
            return super().from_dict(config_dict, **kwargs)
        except (ValueError, TypeError, OSError, StrictDataclassError):
            raise
        except Exception as error:  # transformers looks names up as it reads, and says no more than that it failed
            raise ValueError(f"the configuration cannot be used: {type(error).__name__}: {error}") from error

    @property
    def patches_per_side(self) -> int:
        """Patches along one side of a tile: 384 // 14 = 27."""
        return self.vision_config.image_size // self.vision_config.patch_size

    def validate_geometry(self) -> None:
        """Check token ids and tile sizes; called by `strict` after construction.

        Raises:
            ValueError: naming the field, its value and the rule.
        """
        _check_whole(self.vision_config, ("image_size", "patch_size", "hidden_size", "num_hidden_layers"))
        if self.patches_per_side < 1:
            raise ValueError(
                f"image_size={self.vision_config.image_size} is less than patch_size={self.vision_config.patch_size}; "
                "a tile has at least one patch"
            )
        vocab_size, tile = self.text_config.vocab_size, self.vision_config.image_size
        for name in ("image_token_id", "video_token_id", "mask_token_id"):
            if not 0 <= getattr(self, name) < vocab_size:
                raise ValueError(f"{name}={getattr(self, name)} is not in the vocabulary of {vocab_size} tokens")
        if not 0 < self.output_vocab_size <= vocab_size:
            raise ValueError(f"output_vocab_size={self.output_vocab_size} must lie in 1..vocab_size={vocab_size}")
        for pinpoint in self.image_grid_pinpoints:
            sides = pinpoint if isinstance(pinpoint, list | tuple) else ()
            if len(sides) != 2 or not all(isinstance(side, int) and side > 0 and side % tile == 0 for side in sides):
                raise ValueError(
                    f"image_grid_pinpoints has {pinpoint!r:.80}; each entry is [height, width] in multiples of the "
                    f"tile size {tile}"
                )
        if self.max_tiles < 1:
            raise ValueError(f"max_tiles={self.max_tiles} must be at least 1")


class LladaVOfficialConfig(PreTrainedConfig):
    """Stands for the official model type in `AutoConfig`; what it loads is a [`LladaVConfig`]."""

    model_type = OFFICIAL_MODEL_TYPE

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """As [`LladaVConfig.from_dict`]."""
        return LladaVConfig.from_dict(config_dict, **kwargs)


__all__ = ["LladaVConfig", "LladaVOfficialConfig", "LladaVTextConfig"]
