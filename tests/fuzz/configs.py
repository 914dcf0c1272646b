"""Configuration files: ours, the official one, LLaDA's and SigLIP's, the loop's settings and the processor's."""

import json
import shutil
from functools import cache
from pathlib import Path
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from hypothesis import strategies as st

import parity
from fuzzing import REFUSALS, Finding, attempt, changed, json_bytes, nested, numbers, scalars
from transformers_lladav import (
    BUNDLED_CHECKPOINT,
    LladaVConfig,
    LladaVGenerationConfig,
    LladaVImageProcessor,
    LladaVProcessor,
)
from transformers_lladav.official_config_lladav import config_problems, translate_config
from transformers_lladav.parts_config import translate_parts

# `strict` of huggingface_hub, which transformers declares configurations with, has an error of its own.
CONFIG_REFUSALS = (*REFUSALS, StrictDataclassError)
BUNDLED = Path(BUNDLED_CHECKPOINT)


def read(path: Path) -> Any:
    """A file that is right."""
    return json.loads(path.read_text(encoding="utf-8"))


OFFICIAL, LLADA, SIGLIP = (
    read(parity.FOLDER / f"checkpoint-{name}" / "config.json") for name in ("official", "llada", "siglip")
)
NATIVE, LOOP, PROCESSOR = (
    read(BUNDLED / f"{name}.json") for name in ("config", "generation_config", "processor_config")
)
small = scalars | numbers | st.lists(scalars, max_size=3) | st.just({}) | st.just(nested(300))


def kinds(name: str, document: Any) -> Any:
    """Cases of one kind of file."""
    return st.tuples(st.just(name), changed(document, replacements=small))


STRATEGY = (
    kinds("native", NATIVE)
    | kinds("official", OFFICIAL)
    | kinds("loop", LOOP)
    | kinds("processor", PROCESSOR)
    | kinds("parts", [LLADA, SIGLIP])
    | st.tuples(
        st.sampled_from(("native file", "loop file", "processor file")),
        json_bytes(changed(NATIVE, replacements=small) | changed(PROCESSOR, replacements=small)),
    )
)


def check_native(case: Any, place: Path) -> Any:
    """A configuration that came through must have sizes that a model can have."""
    config = attempt(LladaVConfig.from_dict, case, refusals=CONFIG_REFUSALS)
    if isinstance(config, LladaVConfig):
        text, vision = config.text_config, config.vision_config
        sizes = [text.hidden_size, text.num_attention_heads, text.vocab_size, text.num_hidden_layers, config.max_tiles]
        sizes += [vision.image_size, vision.patch_size, config.patches_per_side]
        if not all(isinstance(size, int) and size > 0 for size in sizes):
            raise Finding(f"sizes {sizes} came through")
        if not 0 < text.rms_norm_eps < 1 or not text.initializer_range >= 0:
            raise Finding(f"rms_norm_eps={text.rms_norm_eps} came through")
    return config


def check_official(case: Any, place: Path) -> Any:
    """What is translated is a configuration."""
    if not isinstance(case, dict):
        return attempt(LladaVConfig.from_dict, {"model_type": "llava_llada"}, refusals=CONFIG_REFUSALS)
    if not isinstance(attempt(config_problems, case), list):
        raise Finding("config_problems raises")
    translated = attempt(translate_config, case, None, SIGLIP)
    if isinstance(translated, dict):
        return attempt(LladaVConfig, **translated, refusals=CONFIG_REFUSALS)
    return translated


def check_loop(case: Any, place: Path) -> Any:
    """Settings that came through must survive saving."""
    settings = attempt(LladaVGenerationConfig.from_dict, case)
    if isinstance(settings, LladaVGenerationConfig):
        attempt(settings.schedule)
        again = attempt(LladaVGenerationConfig.from_dict, settings.to_dict())
        if isinstance(again, Exception) or again.to_dict() != settings.to_dict():
            raise Finding(f"{settings.to_dict()} cannot be read again: {again}")
    return settings


@cache
def tokenizer() -> Any:
    """That of the bundled checkpoint."""
    return LladaVProcessor.from_pretrained(BUNDLED).tokenizer


def check_processor(case: Any, place: Path) -> Any:
    """Settings of the image processor must cut a picture, or be refused."""
    settings = case.get("image_processor") if isinstance(case, dict) else None
    if not isinstance(settings, dict):
        return ValueError("nothing to read")
    images = attempt(LladaVImageProcessor.from_dict, settings)
    if isinstance(images, Exception):
        return images
    from PIL import Image

    return attempt(images, Image.new("RGB", (30, 20)))


def check_parts(case: Any, place: Path) -> Any:
    """LLaDA and SigLIP, joined."""
    if not isinstance(case, list) or len(case) != 2 or not all(isinstance(part, dict) for part in case):
        return ValueError("no two parts")
    translated = attempt(translate_parts, *case, refusals=CONFIG_REFUSALS)
    return (
        translated
        if isinstance(translated, Exception)
        else attempt(LladaVConfig, **translated, refusals=CONFIG_REFUSALS)
    )


def check_file(case: bytes, place: Path, name: str) -> Any:
    """The same through files."""
    folder = place / "config"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    if name == "processor":
        for file in BUNDLED.glob("tokenizer*"):
            shutil.copy(file, folder)
    stem = {"native": "config", "loop": "generation_config", "processor": "processor_config"}[name]
    (folder / f"{stem}.json").write_bytes(case)
    load = {"native": LladaVConfig, "loop": LladaVGenerationConfig, "processor": LladaVProcessor}[name].from_pretrained
    return attempt(load, folder, refusals=CONFIG_REFUSALS)


def check(case: Any, place: Path) -> str:
    """Read it as what it is called."""
    name, content = case
    if name.endswith(" file"):
        result = check_file(content, place, name.removesuffix(" file"))
    else:
        result = globals()[f"check_{name}"](content, place)
    return "refused" if isinstance(result, Exception) else "taken"
