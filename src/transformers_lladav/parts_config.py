"""The configurations of LLaDA-V's parts, LLaDA ("llada") and SigLIP ("siglip"), in the words of [`LladaVConfig`].

LLaDA's code can compute many things that LLaDA itself does not use and that are not here. A configuration that asks
for one of them is refused, because its weights would load and mean something else.
"""

from collections.abc import Mapping
from typing import Any

from transformers import SiglipVisionConfig

from .configuration_lladav import LladaVConfig
from .official_config_lladav import VISION_FIELDS, read_pinpoints

MAX_POSITIONS = 16384  # of LLaDA-V, arXiv:2505.16933; LLaDA was trained with 4096
TILE_COUNTS = "(1x1),...,(6x6)"
SIGLIP_MODEL_TYPES = ("siglip", "siglip_vision_model")

# Settings of LLaDA whose other values mean another computation. A missing one has the value of LLaDA, the first here.
SUPPORTED_VALUES: dict[str, tuple[Any, ...]] = {
    "block_type": ("llama",),
    "block_group_size": (1,),
    "activation_type": ("silu",),
    "layer_norm_type": ("rms",),
    "layer_norm_with_affine": (True,),
    "bias_for_layer_norm": (False, None),
    "attention_layer_norm": (False,),
    "include_bias": (False,),
    "include_qkv_bias": (False,),
    "rope": (True,),
    "rope_scaling": (None,),
    "alibi": (False,),
    "multi_query_attention": (None, False),
    "clip_qkv": (None,),
    "input_emb_norm": (False,),
    "scale_logits": (False,),
    "weight_tying": (False,),
    "embedding_dropout": (0.0,),
    "residual_dropout": (0.0,),
}
SIZES = {"d_model": "hidden_size", "n_layers": "num_hidden_layers", "n_heads": "num_attention_heads"}
OPTIONAL = {
    "rms_norm_eps": "rms_norm_eps",
    "attention_dropout": "attention_dropout",
    "init_std": "initializer_range",
}
TOKEN_IDS = ("mask_token_id", "eos_token_id", "pad_token_id")


def language_problems(llada: Mapping[str, Any]) -> list[str]:
    """Everything in a LLaDA configuration that cannot be translated.

    Args:
        llada: content of its `config.json`.

    Returns:
        One sentence per problem, with the field, its value and what is supported; empty if all is well.
    """
    if llada.get("model_type") != "llada":
        return [
            f"config.json has model_type={llada.get('model_type')!r}; LLaDA in its original layout, such as "
            "GSAI-ML/LLaDA-8B-Instruct, has 'llada'"
        ]
    problems = []
    for name, supported in SUPPORTED_VALUES.items():
        # 1 == True and 0 == False in Python, but as a block_group_size of true they are nonsense.
        if name in llada and not any(_same(llada[name], value) for value in supported):
            choices = ", ".join(repr(value) for value in supported)
            problems.append(f"config.json has {name}={llada[name]!r}; supported: {choices}")
    # The embedding may have more rows than there are tokens; where a size is null, LLaDA's code takes the other.
    required = [*SIZES, "vocab_size" if llada.get("embedding_size") is None else "embedding_size"]
    required.append("mlp_ratio" if llada.get("mlp_hidden_size") is None else "mlp_hidden_size")
    if llada.get("n_kv_heads") is not None:
        required.append("n_kv_heads")
    problems += [_not_whole(name, llada.get(name), 1) for name in required if not _is_whole(llada.get(name), 1)]
    problems += [_not_whole(name, llada.get(name), 0) for name in TOKEN_IDS if not _is_whole(llada.get(name, 0), 0)]
    for name in ("rms_norm_eps", "rope_theta"):
        value = llada.get(name, 1.0)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e30:
            problems.append(f"config.json has {name}={value!r}; it must be a number above 0")
    return problems


def _same(value: Any, supported: Any) -> bool:
    return value == supported and isinstance(value, bool) == isinstance(supported, bool)


def _is_whole(value: Any, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _not_whole(name: str, value: Any, least: int) -> str:
    return f"config.json has {name}={value!r}; it must be a whole number of at least {least}"


def vision_problems(siglip: Mapping[str, Any]) -> list[str]:
    """Everything in a SigLIP configuration that cannot be translated.

    Args:
        siglip: content of its `config.json`, of the whole model or of its vision part.

    Returns:
        One sentence per problem; empty if all is well.
    """
    if siglip.get("model_type") not in SIGLIP_MODEL_TYPES:
        return [
            f"config.json has model_type={siglip.get('model_type')!r}; supported: 'siglip', such as "
            "google/siglip2-so400m-patch14-384, and 'siglip_vision_model'"
        ]
    vision = siglip.get("vision_config", siglip)
    if not isinstance(vision, Mapping):
        return [f"config.json has vision_config={vision!r}; it must be an object"]
    layers = vision_layers(siglip)
    if not _is_whole(layers, 2):
        return [f"{_not_whole('num_hidden_layers', layers, 2)}, because the last vision layer is dropped"]
    return []


def vision_layers(siglip: Mapping[str, Any]) -> int:
    """Number of layers in a SigLIP vision model, with the last, which LLaDA-V drops.

    Args:
        siglip: content of its `config.json`, of the whole model or of its vision part.

    Returns:
        The number, by default that of `SiglipVisionConfig`.
    """
    vision = siglip.get("vision_config", siglip)
    layers: int = vision.get("num_hidden_layers", SiglipVisionConfig().num_hidden_layers)
    return layers


def translate_language(llada: Mapping[str, Any], max_positions: int = MAX_POSITIONS) -> dict[str, Any]:
    """Translate a LLaDA configuration.

    Args:
        llada: content of its `config.json`, without problems.
        max_positions: longest sequence. Rotary positions have no weights, so that it may exceed LLaDA's own
            `max_sequence_length`.

    Returns:
        Keyword arguments of [`LladaVConfig`]: its `text_config` and token ids. What LLaDA's configuration does not
        say has LLaDA's value.
    """
    text = {ours: llada[theirs] for theirs, ours in SIZES.items()}
    text["vocab_size"] = llada["vocab_size"] if llada.get("embedding_size") is None else llada["embedding_size"]
    width = llada.get("mlp_hidden_size")
    text["intermediate_size"] = llada["mlp_ratio"] * llada["d_model"] if width is None else width
    text["num_key_value_heads"] = llada["n_heads"] if llada.get("n_kv_heads") is None else llada["n_kv_heads"]
    text["max_position_embeddings"] = max_positions
    text["rope_parameters"] = {"rope_type": "default", "rope_theta": float(llada.get("rope_theta", 500000.0))}
    text |= {ours: llada[theirs] for theirs, ours in OPTIONAL.items() if llada.get(theirs) is not None}
    ids = {name: llada[name] for name in TOKEN_IDS if llada.get(name) is not None}
    if "pad_token_id" in ids:
        text["pad_token_id"] = ids["pad_token_id"]
    translated: dict[str, Any] = {"text_config": text}
    if "mask_token_id" in ids:
        translated["mask_token_id"] = ids["mask_token_id"]
    if "eos_token_id" in ids:  # LLaDA's end of text; what ends an answer of LLaDA-V is another token
        _, *others = LladaVConfig.suppressed_token_ids
        translated["suppressed_token_ids"] = [ids["eos_token_id"], *others]
    return translated


def translate_vision(siglip: Mapping[str, Any]) -> dict[str, Any]:
    """Translate a SigLIP configuration.

    Args:
        siglip: content of its `config.json`, without problems. What it does not say has the value of
            `SiglipVisionConfig`, since transformers leaves such values out when it saves.

    Returns:
        Keyword arguments of [`LladaVConfig`]: the `vision_config`, one layer shorter and without pooling head, and the
        canvases of 1 x 1 to 6 x 6 tiles that LLaDA-V uses, of the size of its pictures.
    """
    vision = siglip.get("vision_config", siglip)
    given = {name: vision[name] for name in (*VISION_FIELDS, "num_hidden_layers") if name in vision}
    whole = SiglipVisionConfig(**given)
    sizes = {name: getattr(whole, name) for name in VISION_FIELDS}
    sizes |= {"model_type": "siglip_vision_model", "vision_use_head": False}
    sizes["num_hidden_layers"] = whole.num_hidden_layers - 1
    return {"vision_config": sizes, "image_grid_pinpoints": read_pinpoints(TILE_COUNTS, whole.image_size)}


def translate_parts(
    llada: Mapping[str, Any], siglip: Mapping[str, Any], max_positions: int = MAX_POSITIONS
) -> dict[str, Any]:
    """Translate the configurations of both parts.

    Args:
        llada: content of LLaDA's `config.json`.
        siglip: content of SigLIP's `config.json`.
        max_positions: longest sequence.

    Returns:
        Keyword arguments of [`LladaVConfig`].

    Raises:
        ValueError: listing every field of either that cannot be translated.
    """
    problems = [f"language model: {problem}" for problem in language_problems(llada)]
    problems += [f"vision tower: {problem}" for problem in vision_problems(siglip)]
    if not _is_whole(max_positions, 1):
        problems.append(f"max_positions={max_positions!r} must be a whole number of at least 1")
    if problems:
        raise ValueError("\n".join(problems))
    return translate_language(llada, max_positions) | translate_vision(siglip)
