"""Native to official: the configuration and the tokenizer that the official code wants. The inverse of loading it.

The official files cannot say everything that ours can: token ids, the projector's activation and the sizes of the
vision tower stand in the official code or elsewhere. What would be lost is a problem, and nothing is exported.
"""

from collections.abc import Mapping
from typing import Any

from transformers import SiglipVisionConfig

from .chat_text_lladav import MARK, SEAM
from .configuration_lladav import LladaVConfig
from .official_config_lladav import OFFICIAL_MODEL_TYPE, SIGLIP2_SO400M, TEXT_FIELDS, VISION_FIELDS

VISION_TOWER = "google/siglip2-so400m-patch14-384"
RELEASE_LENGTH = 8192  # where the official code cuts a sequence

# What the official code has for everybody, with our names.
FIXED_FIELDS = ("mask_token_id", "projector_hidden_act", "multimodal_projector_bias", "single_tile_newline")
FIXED_TEXT_FIELDS = ("bos_token_id", "eos_token_id", "pad_token_id", "mlp_bias")
IMAGE_SETTINGS: dict[str, Any] = {
    "do_convert_rgb": True,
    "do_resize": True,
    "do_rescale": True,
    "do_normalize": True,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
    "rescale_factor": 1 / 255,
    "resample": 3,
    "tiling": "auto",
}

# What never differs between official checkpoints, as far as the official code reads it when it loads one.
# `mm_tunable_parts` makes it take the tower from the checkpoint, not from `mm_vision_tower`.
CONSTANTS: dict[str, Any] = {
    "model_type": OFFICIAL_MODEL_TYPE,
    "architectures": ["LlavaLLaDAModelLM"],
    "add_faster_video": False,
    "add_time_instruction": False,
    "faster_token_stride": 10,
    "force_sample": False,
    "image_crop_resolution": None,
    "image_split_resolution": None,
    "mm_patch_merge_type": "spatial_unpad",
    "mm_projector_type": "mlp2x_gelu",
    "mm_resampler_type": None,
    "mm_spatial_pool_mode": "bilinear",
    "mm_spatial_pool_stride": None,
    "mm_tunable_parts": "mm_vision_tower,mm_mlp_adapter,mm_language_model",
    "mm_use_im_patch_token": False,
    "mm_use_im_start_end": False,
    "mm_vision_select_feature": "patch",
    "mm_vision_select_layer": -2,
    "pos_skipping_range": 4096,
    "pretraining_tp": 1,
    "rope_scaling": None,
    "tie_word_embeddings": False,
    "tokenizer_padding_side": "right",
    "use_cache": False,
    "use_mm_proj": True,
    "use_pos_skipping": False,
    "vision_tower_pretrained": None,
}
NOT_OFFICIAL = ("head_dim", "mlp_bias")  # text fields that an official configuration does not have

# Every message, and then always the assistant's header: the official template knows no `add_generation_prompt`.
CHAT_TEMPLATE = """\
{%- for message in messages -%}
  {%- if loop.first -%}{{- bos_token -}}{%- endif -%}
  {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' -}}
  {{- message['content'] | trim -}}
  {{- '<|eot_id|>' -}}
{%- endfor -%}
{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' -}}
"""
TOKEN_FLAGS = ("content", "lstrip", "normalized", "rstrip", "single_word")


def export_problems(config: Any, tower: Mapping[str, Any] | None = None) -> list[str]:
    """Everything in a configuration that an official checkpoint cannot express.

    Args:
        config: a [`LladaVConfig`].
        tower: sizes that the named vision tower has in the words of `SiglipVisionConfig`, without its last layer;
            None if they are not known.

    Returns:
        One sentence per problem, with the field, its value and what the official code has.
    """
    text, official = config.text_config, LladaVConfig()
    wrong = {name: (getattr(config, name), getattr(official, name)) for name in FIXED_FIELDS}
    wrong["suppressed_token_ids"] = (sorted(config.suppressed_token_ids), sorted(official.suppressed_token_ids))
    for name in FIXED_TEXT_FIELDS:
        wrong[f"text_config.{name}"] = (getattr(text, name), getattr(official.text_config, name))
    wrong["text_config.head_dim"] = (text.head_dim, text.hidden_size // text.num_attention_heads)
    rope = {name: value for name, value in text.rope_parameters.items() if name != "rope_theta"}
    wrong["text_config.rope_parameters"] = (rope, {"rope_type": "default"})
    wrong["tie_word_embeddings"] = (config.tie_word_embeddings or text.tie_word_embeddings, False)
    problems = [
        f"config.json has {name}={ours!r}; the official code has {theirs!r}, and its config.json cannot say otherwise"
        for name, (ours, theirs) in wrong.items()
        if ours != theirs
    ]
    if getattr(config, "quantization_config", None):
        problems.append("config.json has a quantization_config; call model.dequantize() and save the model again")
    return problems + _tower_problems(config.vision_config, tower)


def _tower_problems(vision: Any, tower: Mapping[str, Any] | None) -> list[str]:
    if getattr(vision, "vision_use_head", False):
        return ["config.json has vision_config.vision_use_head=True; the official tower has no pooling head"]
    names = (*VISION_FIELDS, "num_hidden_layers")
    wrong = [name for name in names if tower and name in tower and tower[name] != getattr(vision, name)]
    if not wrong:
        return []
    ours = ", ".join(f"{name}={getattr(vision, name)!r}" for name in wrong)
    theirs = ", ".join(f"{name}={tower[name]!r}" for name in wrong if tower)
    return [
        f"config.json has a vision_config with {ours}, but the vision tower has {theirs} (without its last layer); "
        "give --vision-tower the Hub id or folder of the SigLIP model that it comes from"
    ]


def known_tower(name: str) -> dict[str, Any] | None:
    """Sizes of a vision tower that every LLaDA-V knows.

    Args:
        name: its Hub id.

    Returns:
        Its sizes without the last layer, if it is that of the release; else None.
    """
    return SiglipVisionConfig(**SIGLIP2_SO400M).to_dict() if name == VISION_TOWER else None


def image_problems(settings: Mapping[str, Any], config: Any) -> list[str]:
    """Settings of an image processor that the official code does not have.

    Args:
        settings: content of `image_processor` in `processor_config.json`; a missing one is fine.
        config: the [`LladaVConfig`] beside it, which alone is exported.

    Returns:
        One sentence per setting, with its value and the official one.
    """
    tile = config.vision_config.image_size
    expected = {
        **IMAGE_SETTINGS,
        "size": {"height": tile, "width": tile},
        "patch_size": config.vision_config.patch_size,
        "image_grid_pinpoints": config.image_grid_pinpoints,
        "max_tiles": config.max_tiles,
        "newline_position": config.newline_position,
        "single_tile_newline": config.single_tile_newline,
    }
    return [
        f"processor_config.json has {name}={str(settings[name])[:80]}; the official code would have {str(value)[:80]}"
        for name, value in expected.items()
        if name in settings and settings[name] != value
    ]


def official_config(config: Any, dtype: str, vision_tower: str = VISION_TOWER) -> dict[str, Any]:
    """The official `config.json`.

    Args:
        config: a [`LladaVConfig`] without `export_problems`.
        dtype: type of the tensors, such as "bfloat16".
        vision_tower: what `mm_vision_tower` names: the SigLIP model that the official code takes sizes from.

    Returns:
        Its content. `bos_token_id` is the token's real id (the release has one outside its vocabulary);
        `eos_token_id` is the padding, as in the release.
    """
    text = config.text_config
    fields = {name: getattr(text, name) for name in TEXT_FIELDS if name not in NOT_OFFICIAL}
    return dict(
        sorted(
            {
                **CONSTANTS,
                **fields,
                **_official_tiling(config),
                "rope_theta": text.rope_parameters["rope_theta"],
                "bos_token_id": text.bos_token_id,
                "eos_token_id": text.pad_token_id,
                "mm_hidden_size": config.vision_config.hidden_size,
                "mm_newline_position": config.newline_position,
                "mm_vision_tower": vision_tower,
                "tokenizer_model_max_length": min(RELEASE_LENGTH, text.max_position_embeddings),
                "torch_dtype": dtype,
            }.items()
        )
    )


def _official_tiling(config: Any) -> dict[str, Any]:
    if not config.image_grid_pinpoints:
        return {"image_aspect_ratio": "pad", "image_grid_pinpoints": []}
    canvases = [[width, height] for height, width in config.image_grid_pinpoints]
    return {"image_aspect_ratio": f"anyres_max_{config.max_tiles}", "image_grid_pinpoints": canvases}


def official_generation_config(config: Any) -> dict[str, Any]:
    """The official `generation_config.json`, whose ids are those of the official `config.json`.

    Args:
        config: a [`LladaVConfig`].

    Returns:
        Its content.
    """
    text = config.text_config
    return {"bos_token_id": text.bos_token_id, "eos_token_id": text.pad_token_id, "pad_token_id": text.pad_token_id}


def official_tokenizer(native: Mapping[str, Any], config: Any, problems: list[str]) -> dict[str, Any]:
    """LLaDA's own `tokenizer.json`, as old versions of the tokenizers library read it.

    The placeholders and what `prepare_tokenizer` put in are taken out. The official loader cuts the vocabulary to the
    number of entries, which therefore must be that of the tokens that answers consist of.

    Args:
        native: content of the native `tokenizer.json`.
        config: the [`LladaVConfig`] beside it.
        problems: gets a sentence if the entries left are not those with the ids below `output_vocab_size`.

    Returns:
        Content of the official one.
    """
    size = config.output_vocab_size
    placeholders = {config.image_token_id, config.video_token_id}
    added = [entry for entry in native["added_tokens"] if not (entry["id"] >= size and entry["id"] in placeholders)]
    entries = {token: number for token, number in native["model"]["vocab"].items()}
    entries |= {entry["content"]: entry["id"] for entry in added}
    if beyond := sorted(token for token, number in entries.items() if number >= size):
        problems.append(
            f"the tokenizer has {len(beyond)} tokens beyond output_vocab_size={size} ({', '.join(beyond[:5])}); the "
            "official tokenizer has no room for them: remove them"
        )
    if missing := sorted(set(range(size)) - set(entries.values())):
        problems.append(
            f"the tokenizer has no token for {len(missing)} of the ids below output_vocab_size={size} (the first is "
            f"{missing[0]}); the official loader would cut the vocabulary at another place"
        )
    return {
        **native,
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": _without(native.get("normalizer"), "normalizers", "Replace", MARK),
        "pre_tokenizer": _without(native.get("pre_tokenizer"), "pretokenizers", "Split", SEAM),
        "post_processor": _official_post_processor(native.get("post_processor")),
        "model": _old_merges(native["model"]),
    }


def _without(step: Any, list_name: str, kind: str, pattern: str) -> Any:
    """Take the step that `prepare_tokenizer` put first out of a normalizer or pre-tokenizer."""

    def is_ours(entry: Any) -> bool:
        return bool(entry) and entry["type"] == kind and entry["pattern"] == {"String": pattern}

    if is_ours(step):
        return None
    if step and step["type"] == "Sequence" and step[list_name] and is_ours(step[list_name][0]):
        rest = step[list_name][1:]
        return rest[0] if len(rest) == 1 else {**step, list_name: rest}
    return step


def _official_post_processor(step: Any) -> Any:
    """None in the place of a template that adds no tokens, which transformers 5 writes."""
    return None if step and step["type"] == "TemplateProcessing" and not step["special_tokens"] else step


def _old_merges(model: Mapping[str, Any]) -> dict[str, Any]:
    """Merges as "a b", which all versions of the tokenizers library read; new ones write ["a", "b"]."""
    merges = model.get("merges", [])
    pairs = [merge for merge in merges if not isinstance(merge, str)]
    if any(" " in token for pair in pairs for token in pair):  # tokenizers 0.20 reads pairs; before, there is no way
        return dict(model)
    return {**model, "merges": [merge if isinstance(merge, str) else " ".join(merge) for merge in merges]}


def official_tokenizer_config(
    native: Mapping[str, Any], tokenizer: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The two files beside `tokenizer.json` that transformers before v5 reads.

    Args:
        native: content of the native `tokenizer_config.json`.
        tokenizer: content of the official `tokenizer.json`.

    Returns:
        Content of `tokenizer_config.json` and of `special_tokens_map.json`.
    """
    added = {entry["content"]: entry for entry in tokenizer["added_tokens"]}
    present = {*added, *tokenizer["model"]["vocab"]}
    named = {name: _content(value) for name, value in native.items() if name.endswith("_token")}
    named = {name: token for name, token in named.items() if token in present}
    others = native.get("extra_special_tokens") or native.get("additional_special_tokens") or []
    if isinstance(others, Mapping):
        named |= {name: _content(value) for name, value in others.items() if _content(value) in present}
        others = []
    additional = [token for token in map(_content, others) if token in present]
    decoder = {
        str(entry["id"]): {**{flag: entry[flag] for flag in TOKEN_FLAGS}, "special": entry["special"]}
        for entry in sorted(tokenizer["added_tokens"], key=lambda entry: entry["id"])
    }
    content = {
        "add_bos_token": False,
        "add_eos_token": False,
        "added_tokens_decoder": decoder,
        "additional_special_tokens": additional,
        "chat_template": CHAT_TEMPLATE,
        "clean_up_tokenization_spaces": native.get("clean_up_tokenization_spaces", False),
        "model_input_names": ["input_ids", "attention_mask"],
        "model_max_length": native.get("model_max_length", int(1e30)),
        "tokenizer_class": "PreTrainedTokenizerFast",
        **named,
    }
    standard = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")
    special: dict[str, Any] = {
        f"{name}_token": {flag: added[named[f"{name}_token"]][flag] for flag in TOKEN_FLAGS}
        for name in standard
        if named.get(f"{name}_token") in added
    }
    special["additional_special_tokens"] = additional
    return dict(sorted(content.items())), dict(sorted(special.items()))


def _content(token: Any) -> Any:
    """A token's text, however a configuration writes it."""
    return token.get("content") if isinstance(token, Mapping) else token
