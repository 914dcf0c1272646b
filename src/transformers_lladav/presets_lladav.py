"""Settings by name: speed presets, and those of LLaDA-V's evaluation (arXiv:2505.16933, appendix)."""

import difflib
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Preset:
    """A named group of settings.

    Attributes:
        settings: arguments of `generate`.
        description: what it is for, one line.
        tag: what the paper puts after the question, such as "/no_think"; `generate` cannot add it to a prompt.
    """

    settings: dict[str, Any] = field(default_factory=dict)
    description: str = ""
    tag: str | None = None


_OFF = (
    "threshold", "factor", "entropy_bound", "sampler_config", "stability_threshold", "confidence_threshold", "top_k",
    "top_p", "no_repeat_ngram_size",
)  # fmt: skip
_EXACT = {
    **dict.fromkeys(_OFF), "temperature": 0.0, "remasking": "low_confidence", "prompt_refresh_interval": 1,
    "use_cache": "prompt",
}  # fmt: skip


def _lengths(tokens: int, steps: int) -> dict[str, Any]:
    lengths = {"max_new_tokens": tokens, "block_length": tokens, "max_denoising_steps": steps}
    return {**lengths, **_EXACT, "guidance_scale": 1.0}


_ONE_WORD = Preset(_lengths(2, 2), "one word or letter", "/no_think")
_DOCUMENT = Preset(_lengths(32, 16), "a short answer from a document", "/no_think")

PRESETS = {
    "exact": Preset(_EXACT, "the official loop; the default"),
    "balanced": Preset(
        {"threshold": 0.9, "prompt_refresh_interval": 2},
        "every token the model is 90 % sure of at once; the prompt is looked at anew in every second step",
    ),
    "fast": Preset(
        {"threshold": 0.9, "prompt_refresh_interval": None},
        "the same with a single look at the prompt; costs accuracy",
    ),
    "mmmu": _ONE_WORD,
    "mmmu_pro": _ONE_WORD,
    "mmstar": _ONE_WORD,
    "ai2d": _ONE_WORD,
    "seedbench": _ONE_WORD,
    "mmbench": _ONE_WORD,
    "muirbench": _ONE_WORD,
    "videomme": _ONE_WORD,
    "mlvu": _ONE_WORD,
    "mme": _ONE_WORD,
    "realworldqa": _ONE_WORD,
    "chartqa": Preset({**_lengths(16, 16), "stop_strings": ["\n"]}, "one line, from a chart", "/no_think"),
    "docvqa": _DOCUMENT,
    "infovqa": _DOCUMENT,
    "mathvista": Preset(_lengths(96, 48), "a reasoned answer about a figure", "/think"),
    "mathverse": Preset(_lengths(64, 32), "a reasoned answer about a figure", "/think"),
}


def find_preset(name: str) -> Preset:
    """Look up a preset.

    Args:
        name: capitals do not matter.

    Returns:
        The preset.

    Raises:
        ValueError: for an unknown name, with the nearest ones.
    """
    known = name.lower() if isinstance(name, str) else ""
    preset = PRESETS.get(known)
    if preset is None:
        close = difflib.get_close_matches(known, PRESETS, n=3) or list(PRESETS)
        raise ValueError(f"preset={name!r:.80} is not known; choose one of {', '.join(close)} (see `lladav presets`)")
    return preset
