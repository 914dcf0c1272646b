"""An official `config.json` ("llava_llada") in the words of [`LladaVConfig`].

The official file does not hold the sizes of the vision tower. They come from a SigLIP configuration, or from the
shapes of the tensors, or are those of SigLIP2-so400m.
"""

import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

OFFICIAL_MODEL_TYPE = "llava_llada"
DEFAULT_TILE = 384
MAX_TILES_ACROSS = 64

SIGLIP2_SO400M = {
    "model_type": "siglip_vision_model",
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "num_hidden_layers": 26,
    "num_attention_heads": 16,
    "image_size": 384,
    "patch_size": 14,
    "vision_use_head": False,
}
GIVE_VISION_CONFIG = "give its SigLIP configuration (vision_config= of from_pretrained, --vision-config of a script)"

# Fields whose other values mean a computation that this package does not have. A missing field is fine.
SUPPORTED_VALUES: dict[str, tuple[Any, ...]] = {
    "mm_projector_type": ("mlp2x_gelu",),
    "mm_patch_merge_type": ("spatial_unpad",),
    "mm_resampler_type": (None,),
    "mm_vision_select_feature": ("patch",),
    "mm_vision_select_layer": (-2,),
    "mm_newline_position": ("grid", "frame", "one_token", "no_token"),
    "mm_use_im_start_end": (False,),
    "add_faster_video": (False,),
    "use_pos_skipping": (False,),
    "tie_word_embeddings": (False,),
    "rope_scaling": (None,),
}

TEXT_FIELDS = (
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
    "num_key_value_heads", "head_dim", "hidden_act", "max_position_embeddings", "initializer_range", "rms_norm_eps",
    "attention_bias", "attention_dropout", "mlp_bias",
)  # fmt: skip
REQUIRED_FIELDS = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")

VISION_FIELDS = (
    "hidden_size", "intermediate_size", "num_attention_heads", "num_channels", "image_size", "patch_size",
    "hidden_act", "layer_norm_eps", "attention_dropout",
)  # fmt: skip


def config_problems(official: Mapping[str, Any]) -> list[str]:
    """Everything in an official configuration that cannot be translated.

    Args:
        official: content of its `config.json`.

    Returns:
        One sentence per problem, with the field, its value and what is supported; empty if all is well.
    """
    problems = []
    if official.get("model_type") != OFFICIAL_MODEL_TYPE:
        problems.append(
            f"config.json has model_type={official.get('model_type')!r}; an official LLaDA-V checkpoint has "
            f"{OFFICIAL_MODEL_TYPE!r}"
        )
        return problems
    for name in REQUIRED_FIELDS:
        value = official.get(name)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            problems.append(f"config.json has {name}={value!r}; it must be a whole number of at least 1")
    theta = official.get("rope_theta", 500000.0)
    if isinstance(theta, bool) or not isinstance(theta, int | float) or not 0 < theta < 1e30:
        problems.append(f"config.json has rope_theta={theta!r:.80}; it must be a finite number above 0")
    for name, supported in SUPPORTED_VALUES.items():
        if name in official and official[name] not in supported:
            choices = ", ".join(repr(value) for value in supported)
            problems.append(f"config.json has {name}={official[name]!r}; supported: {choices}")
    try:
        read_tiling(official, DEFAULT_TILE)
    except ValueError as error:
        problems.append(f"config.json: {error}")
    return problems


def translate_config(
    official: Mapping[str, Any],
    shapes: Mapping[str, Sequence[int]] | None = None,
    vision: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Translate an official configuration.

    Token ids are left to the defaults of [`LladaVConfig`]: the official file's `bos_token_id` 128000 lies outside the
    vocabulary and its `eos_token_id` is the padding.

    Args:
        official: content of the official `config.json`.
        shapes: shape of every tensor by its native name, if known.
        vision: content of a SigLIP configuration (of the whole model or of its vision part), if known.

    Returns:
        Keyword arguments of [`LladaVConfig`].

    Raises:
        ValueError: listing every field that cannot be translated, or if the vision sizes cannot be told.
    """
    if problems := config_problems(official):
        raise ValueError("\n".join(problems))
    text = {name: official[name] for name in TEXT_FIELDS if official.get(name) is not None}
    text["rope_parameters"] = {"rope_type": "default", "rope_theta": float(official.get("rope_theta", 500000.0))}
    sizes = vision_sizes(shapes or {}, vision, official.get("image_grid_pinpoints"), official.get("mm_hidden_size"))
    return {"text_config": text, "vision_config": sizes, **_picture_settings(official, sizes["image_size"])}


def translate_image_settings(
    official: Mapping[str, Any],
    shapes: Mapping[str, Sequence[int]] | None = None,
    vision: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """How an official checkpoint wants its pictures; the vision tower's number of heads need not be known.

    Args:
        official: as for `translate_config`.
        shapes: as for `translate_config`.
        vision: as for `translate_config`.

    Returns:
        Keyword arguments of [`LladaVImageProcessor`].

    Raises:
        ValueError: listing every field that cannot be translated, or if the tile size cannot be told.
    """
    if problems := config_problems(official):
        raise ValueError("\n".join(problems))
    sizes = _tower_sizes(shapes or {}, vision, official.get("image_grid_pinpoints"), official.get("mm_hidden_size"))
    tile = sizes["image_size"]
    settings = _picture_settings(official, tile)
    if settings["image_grid_pinpoints"] is None:
        del settings["image_grid_pinpoints"]
    return {"size": {"height": tile, "width": tile}, "patch_size": sizes["patch_size"], **settings}


def _picture_settings(official: Mapping[str, Any], tile: int) -> dict[str, Any]:
    """What the model and the image processor must agree on."""
    return {"newline_position": official.get("mm_newline_position", "grid"), **read_tiling(official, tile)}


def read_tiling(official: Mapping[str, Any], tile: int) -> dict[str, Any]:
    """How pictures are cut, from `image_aspect_ratio` and `image_grid_pinpoints`.

    Args:
        official: content of the official `config.json`.
        tile: side of a tile in pixels.

    Returns:
        `max_tiles` and `image_grid_pinpoints` as [`LladaVConfig`] takes them.

    Raises:
        ValueError: for a value that is not understood.
    """
    aspect = official.get("image_aspect_ratio", "anyres_max_4")
    if aspect == "pad":
        return {"image_grid_pinpoints": []}
    limit = re.fullmatch(r"anyres_max_([1-9]\d*)", str(aspect))
    if limit is None:
        raise ValueError(f'image_aspect_ratio={aspect!r}; supported: "anyres_max_N" and "pad"')
    pinpoints = official.get("image_grid_pinpoints")
    return {"max_tiles": int(limit[1]), "image_grid_pinpoints": pinpoints and read_pinpoints(pinpoints, tile)}


def read_pinpoints(official: str | Sequence[Sequence[int]], tile: int) -> list[list[int]]:
    """Canvases in the official words, [width, height], as ours, [height, width], in the same order.

    Args:
        official: a list of pixel sizes, the same as text, or a range of tile counts such as "(1x1),...,(6x6)", which
            means every width from the first to the last and, for each, every height.
        tile: side of a tile in pixels.

    Returns:
        A list of [height, width] in pixels.

    Raises:
        ValueError: for anything else.
    """
    if isinstance(official, str):
        counts = [(int(width), int(height)) for width, height in re.findall(r"\((\d+)\s*x\s*(\d+)\)", official)]
        if counts:
            (first_width, first_height), (last_width, last_height) = counts[0], counts[-1]
            if not (1 <= first_width <= last_width and 1 <= first_height <= last_height):
                raise ValueError(  # without a canvas, pictures would not be tiled at all, and nobody would know
                    f"image_grid_pinpoints={official[:80]}; a range begins at (1x1) or more and goes up, such as "
                    '"(1x1),...,(6x6)"'
                )
            if max(last_width, last_height) > MAX_TILES_ACROSS:
                raise ValueError(
                    f"image_grid_pinpoints={official[:80]}; a canvas of more than {MAX_TILES_ACROSS} tiles across or "
                    "down is refused"
                )
            return [
                [tile * height, tile * width]
                for width in range(first_width, last_width + 1)
                for height in range(first_height, last_height + 1)
            ]
    try:
        pairs = json.loads(official) if isinstance(official, str) else official
        return [[_whole(height), _whole(width)] for width, height in pairs]
    except (TypeError, ValueError, OverflowError, RecursionError) as error:  # infinity; nesting without end
        raise ValueError(
            f"image_grid_pinpoints={str(official)[:80]}; give [[width, height], ...] in pixels or a range of tile "
            'counts such as "(1x1),...,(6x6)"'
        ) from error


def _whole(side: Any) -> int:
    if int(side) != side:
        raise ValueError(f"{side!r} is no whole number")
    return int(side)


def vision_sizes(
    shapes: Mapping[str, Sequence[int]],
    vision: Mapping[str, Any] | None = None,
    pinpoints: str | Sequence[Sequence[int]] | None = None,
    hidden_size: int | None = None,
) -> dict[str, Any]:
    """Sizes of the vision tower.

    Args:
        shapes: shape of every tensor by its native name; the number of layers is always theirs, since a SigLIP
            configuration counts the last layer, which LLaDA-V drops.
        vision: content of a SigLIP configuration; what it leaves out is read from the shapes.
        pinpoints: the official canvases, which tell the picture size when it is not a multiple of the patch size.
        hidden_size: the official `mm_hidden_size`, for when nothing else is known.

    Returns:
        Keyword arguments of `SiglipVisionConfig` with its `model_type`.

    Raises:
        ValueError: if the number of heads or the sizes are not known, or `vision` is about another tower.
    """
    sizes = _tower_sizes(shapes, vision, pinpoints, hidden_size)
    if sizes["hidden_size"] != SIGLIP2_SO400M["hidden_size"] and "num_attention_heads" not in _vision_part(vision):
        raise ValueError(
            f"the vision tower has hidden_size={sizes['hidden_size']}, and its number of attention heads cannot be "
            f"seen in the tensors; {GIVE_VISION_CONFIG}"
        )
    return sizes


def _tower_sizes(
    shapes: Mapping[str, Sequence[int]],
    vision: Mapping[str, Any] | None,
    pinpoints: str | Sequence[Sequence[int]] | None,
    hidden_size: int | None,
) -> dict[str, Any]:
    """As `vision_sizes`, with a number of heads that is right only if the caller says so or it is SigLIP2-so400m."""
    stored, layers = _sizes_from_shapes(shapes, pinpoints), _count_vision_layers(shapes)
    sizes: dict[str, Any] = {**SIGLIP2_SO400M, **stored}
    if layers:
        sizes["num_hidden_layers"] = layers
    if vision is None:
        if not stored and hidden_size not in (None, SIGLIP2_SO400M["hidden_size"]):
            raise ValueError(
                f"config.json has mm_hidden_size={hidden_size}, so the vision tower is not SigLIP2-so400m (1152), and "
                f"there are no tensors to read its sizes from; {GIVE_VISION_CONFIG}"
            )
        return sizes
    part = _vision_part(vision)
    for name in ("hidden_size", "intermediate_size", "num_channels", "patch_size"):
        if name in part and part[name] != stored.get(name, part[name]):
            raise ValueError(
                f"the checkpoint's vision tower has {name}={stored[name]}, but the vision configuration has "
                f"{part[name]}; is this the configuration of its vision tower?"
            )
    whole = part.get("num_hidden_layers", sizes["num_hidden_layers"] + 1)
    if layers not in (0, whole - 1, whole):
        raise ValueError(
            f"the checkpoint has {layers} vision layers, but the vision configuration has {whole}, of which "
            f"LLaDA-V keeps {whole - 1}; is this the configuration of its vision tower?"
        )
    sizes.update({name: part[name] for name in VISION_FIELDS if name in part})
    sizes["num_hidden_layers"] = layers or whole - 1
    return sizes


def _vision_part(vision: Mapping[str, Any] | None) -> Mapping[str, Any]:
    """The vision part of a SigLIP configuration; a file of transformers leaves out what has its default value."""
    part: Mapping[str, Any] = (vision or {}).get("vision_config") or vision or {}
    if part.get("model_type") == SIGLIP2_SO400M["model_type"]:
        from transformers import SiglipVisionConfig  # importing it loads the Auto classes, which import us

        return SiglipVisionConfig(**part).to_dict()
    return part


def _count_vision_layers(shapes: Mapping[str, Sequence[int]]) -> int:
    found = (re.match(r"model\.vision_tower\.encoder\.layers\.(\d+)\.", name) for name in shapes)
    return max((int(layer[1]) + 1 for layer in found if layer), default=0)


def _sizes_from_shapes(
    shapes: Mapping[str, Sequence[int]], pinpoints: str | Sequence[Sequence[int]] | None
) -> dict[str, int]:
    sizes = {}
    kernel = shapes.get("model.vision_tower.embeddings.patch_embedding.weight", ())
    if len(kernel) == 4 and min(kernel) > 0:
        sizes["hidden_size"], sizes["num_channels"], sizes["patch_size"] = kernel[0], kernel[1], kernel[2]
    mlp = shapes.get("model.vision_tower.encoder.layers.0.mlp.fc1.weight", ())
    if len(mlp) == 2:
        sizes["intermediate_size"] = mlp[0]
    positions = shapes.get("model.vision_tower.embeddings.position_embedding.weight", ())
    if len(positions) == 2 and "patch_size" in sizes:
        sizes["image_size"] = _image_size(math.isqrt(positions[0]), sizes["patch_size"], pinpoints)
    return sizes


def _image_size(side: int, patch: int, pinpoints: str | Sequence[Sequence[int]] | None) -> int:
    """Pixels along a tile of `side` patches; 27 patches of 14 fit 378 to 391 pixels, so canvases are asked first."""
    candidates = [DEFAULT_TILE]
    if pinpoints and not isinstance(pinpoints, str):
        candidates.insert(
            0, math.gcd(*(pixels for pair in read_pinpoints(pinpoints, DEFAULT_TILE) for pixels in pair))
        )
    return next((pixels for pixels in candidates if pixels // patch == side), side * patch)
