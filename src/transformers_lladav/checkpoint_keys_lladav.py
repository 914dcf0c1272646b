"""The key table: what a tensor is called in each layout. It stands once, for loading, converting and exporting.

Four layouts hold LLaDA-V or parts of it: the native one, the official release's, LLaDA's own (the language model
before it saw pictures) and SigLIP's (the vision tower before). Every other layout is translated through the official
one.
"""

import re

# Official to native. Regular expressions as transformers takes them; no pattern matches a native key, so that a native
# checkpoint passes unchanged.
OFFICIAL_RENAMINGS: tuple[tuple[str, str], ...] = (
    (r"model\.vision_tower\.vision_tower\.vision_model\.", r"model.vision_tower."),
    (r"model\.mm_projector\.0\.", r"model.multi_modal_projector.linear_1."),
    (r"model\.mm_projector\.2\.", r"model.multi_modal_projector.linear_2."),
    (r"^model\.embed_tokens\.", r"model.language_model.embed_tokens."),
    (r"^model\.layers\.", r"model.language_model.layers."),
    (r"^model\.norm\.", r"model.language_model.norm."),
)

# LLaDA to official. A block's modules are named in the second table.
LLADA_RENAMINGS: tuple[tuple[str, str], ...] = (
    ("model.transformer.wte.", "model.embed_tokens."),
    ("model.transformer.ln_f.", "model.norm."),
    ("model.transformer.ff_out.", "lm_head."),
)
LLADA_BLOCK = re.compile(r"model\.transformer\.blocks\.(\d+)\.(\w+)\.(weight|bias)")
LLADA_MODULES = {
    "q_proj": "self_attn.q_proj",
    "k_proj": "self_attn.k_proj",
    "v_proj": "self_attn.v_proj",
    "attn_out": "self_attn.o_proj",
    "ff_proj": "mlp.gate_proj",
    "up_proj": "mlp.up_proj",
    "ff_out": "mlp.down_proj",
    "attn_norm": "input_layernorm",
    "ff_norm": "post_attention_layernorm",
}

# SigLIP to official: files of transformers before v5 have the prefix, those written by v5 from the vision part do not.
SIGLIP_VISION = re.compile(r"(?:vision_model\.)?((?:embeddings|encoder|post_layernorm)\..+)")
SIGLIP_LAYER = re.compile(r"encoder\.layers\.(\d+)\.")
SIGLIP_UNUSED = re.compile(r"text_model\.|logit_scale$|logit_bias$|(vision_model\.)?head\.")
OFFICIAL_TOWER = "model.vision_tower.vision_tower.vision_model."


def native_key(official_key: str) -> str:
    """Translate one key of an official checkpoint; native keys come back as they are."""
    for pattern, target in OFFICIAL_RENAMINGS:
        renamed, count = re.subn(pattern, target, official_key, count=1)
        if count:
            return renamed
    return official_key


def official_key(native_key: str) -> str:
    """Translate one native key into that of the official release; official keys come back as they are."""
    for pattern, target in OFFICIAL_RENAMINGS:
        official = pattern.removeprefix("^").replace(r"\.", ".")
        if native_key.startswith(target) and not native_key.startswith(official):
            return official + native_key.removeprefix(target)
    return native_key


def language_key(llada_key: str) -> str | None:
    """Translate one key of LLaDA's own layout into the native one.

    Args:
        llada_key: such as `model.transformer.blocks.0.ff_proj.weight`.

    Returns:
        The native key, or None if LLaDA has no such tensor.
    """
    for source, target in LLADA_RENAMINGS:
        if llada_key.startswith(source):
            return native_key(target + llada_key.removeprefix(source))
    block = LLADA_BLOCK.fullmatch(llada_key)
    if block is None or block[2] not in LLADA_MODULES:
        return None
    return native_key(f"model.layers.{block[1]}.{LLADA_MODULES[block[2]]}.{block[3]}")


def vision_key(siglip_key: str, layers_kept: int) -> str | None:
    """Translate one key of a SigLIP checkpoint into the native one.

    Args:
        siglip_key: a key of a whole SigLIP model or of its vision part.
        layers_kept: LLaDA-V's number of vision layers, one less than SigLIP's.

    Returns:
        The native key; "" for a tensor that LLaDA-V does not use (the last layer, the pooling head, the text model);
        None if SigLIP has no such tensor.
    """
    if SIGLIP_UNUSED.match(siglip_key):
        return ""
    vision = SIGLIP_VISION.fullmatch(siglip_key)
    if vision is None:
        return None
    layer = SIGLIP_LAYER.match(vision[1])
    if layer is not None and int(layer[1]) >= layers_kept:
        return ""
    return native_key(OFFICIAL_TOWER + vision[1])
