"""Adapter folders from elsewhere: their configuration, what they say of their base, and their tensors."""

import json
import shutil
import struct
from functools import cache
from pathlib import Path
from typing import Any

import torch
from hypothesis import strategies as st
from safetensors.torch import save

from fuzzing import Finding, attempt, changed, damaged, json_bytes, outcome
from transformers_lladav import BUNDLED_CHECKPOINT, LladaVConfig, LladaVForMaskedDiffusion
from transformers_lladav.adapter_checks import check_adapter
from transformers_lladav.adapter_fit import AdapterError, check_fit, import_peft, read_base
from transformers_lladav.card_facts import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    adapter_settings,
    read_recipe,
    settings_table,
)

BASE = {
    "name_or_path": "owner/base",
    "commit": None,
    "model_type": "lladav",
    "quantization": None,
    "sizes": {"text_config.hidden_size": 128, "text_config.num_hidden_layers": 4},
    "fingerprints": {"language_layers": "00"},
}


@cache
def config() -> LladaVConfig:
    """That of the bundled checkpoint."""
    return LladaVConfig.from_pretrained(BUNDLED_CHECKPOINT)


@cache
def right() -> tuple[dict[str, Any], bytes]:
    """An adapter as PEFT saves it: configuration and weights."""
    peft = import_peft()
    settings = peft.LoraConfig(r=2, lora_alpha=4, target_modules=["q_proj"], base_model_name_or_path="owner/base")
    with torch.device("meta"):
        bare = LladaVForMaskedDiffusion(config())
    shapes = peft.get_peft_model_state_dict(peft.get_peft_model(bare, settings, low_cpu_mem_usage=True))
    tensors = {name: torch.zeros(tuple(tensor.shape)) for name, tensor in shapes.items()}
    document = settings.to_dict()
    return json.loads(json.dumps(document, default=sorted)), save(tensors, {"format": "pt"})


@cache
def header() -> dict[str, Any]:
    """The header of these weights."""
    content = right()[1]
    (length,) = struct.unpack("<Q", content[:8])
    return json.loads(content[8 : 8 + length])


@st.composite
def weights(draw: Any) -> bytes:
    """The weights, with another header or damage."""
    content = right()[1]
    if draw(st.booleans()):
        return content
    if draw(st.booleans()):
        return draw(damaged((content,)))
    (length,) = struct.unpack("<Q", content[:8])
    written = json.dumps(draw(changed(header(), replacements=st.just([1, 2]) | st.text(max_size=3)))).encode()
    return struct.pack("<Q", len(written)) + written + content[8 + length :]


STRATEGY = st.tuples(
    st.deferred(lambda: st.just(json.dumps(right()[0]).encode()) | json_bytes(changed(right()[0]))),
    st.none() | json_bytes(changed(BASE)),
    weights(),
    st.none() | json_bytes(changed({"name": "lora", "adapter": {"rank": 2}, "stages": [{"x": 1}]})),
)


def check(case: Any, place: Path) -> str:
    """Check it as publishing and loading do; nothing of it is executed."""
    settings, base, content, recipe = case
    folder = place / "adapter"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    files = {ADAPTER_CONFIG: settings, ADAPTER_WEIGHTS: content, "base_model.json": base, "recipe.json": recipe}
    for name, written in files.items():
        if written is not None:
            (folder / name).write_bytes(written)
    checked = attempt(check_adapter, folder, refusals=())
    if not (checked.errors or checked.passed):
        raise Finding("nothing was found, good or bad")
    attempt(read_base, folder, refusals=ValueError)
    described = attempt(read_recipe, folder, refusals=ValueError)
    if isinstance(described, dict):
        attempt(settings_table, described, refusals=())
    fit = attempt(check_fit, folder, config(), refusals=ValueError)
    if isinstance(fit, AdapterError) and not fit.problems:
        raise Finding("an AdapterError without a problem")
    try:
        document = json.loads(settings)
    except (ValueError, RecursionError):
        document = None
    if isinstance(document, dict):
        attempt(lambda: settings_table(adapter_settings(document)), refusals=())
    return outcome(fit)
