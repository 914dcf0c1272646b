"""The key table: what the tensors of an official LLaDA-V checkpoint are called here.

It stands once and serves both the renaming at load time and the converter. Patterns are regular expressions searched
in the official key; no pattern matches a native key, so that a native checkpoint passes unchanged.
"""

import re

OFFICIAL_RENAMINGS: tuple[tuple[str, str], ...] = (
    (r"model\.vision_tower\.vision_tower\.vision_model\.", r"model.vision_tower."),
    (r"model\.mm_projector\.0\.", r"model.multi_modal_projector.linear_1."),
    (r"model\.mm_projector\.2\.", r"model.multi_modal_projector.linear_2."),
    (r"^model\.embed_tokens\.", r"model.language_model.embed_tokens."),
    (r"^model\.layers\.", r"model.language_model.layers."),
    (r"^model\.norm\.", r"model.language_model.norm."),
)


def native_key(official_key: str) -> str:
    """Translate one key of an official checkpoint; native keys come back as they are."""
    for pattern, target in OFFICIAL_RENAMINGS:
        renamed, count = re.subn(pattern, target, official_key, count=1)
        if count:
            return renamed
    return official_key
