"""Settings of the loop: names, official aliases, presets and values of any kind."""

from functools import cache
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from fuzzing import Finding, attempt, outcome, scalars, texts, values
from transformers_lladav import LladaVGenerationConfig, asking
from transformers_lladav.commit_rules_lladav import RULES
from transformers_lladav.eval_asking import Asking, resolve_generation
from transformers_lladav.generation_configuration_lladav import ALIASES, DEFAULTS, HINTS, resolve_aliases
from transformers_lladav.presets_lladav import PRESETS, Preset, find_preset

NAMES = st.sampled_from((*DEFAULTS, *ALIASES, *HINTS, "max_new_token", "Threshold", ""))
RIGHT = {
    "max_new_tokens": st.sampled_from((8, 16, 128)),
    "block_length": st.sampled_from((8, 16, 3)),
    "max_denoising_steps": st.integers(1, 40),
    "steps": st.integers(1, 40),
    "temperature": st.floats(0, 2),
    "cfg_scale": st.floats(0, 2),
    "guidance_scale": st.floats(0, 2),
    "threshold": st.floats(0, 1),
    "top_p": st.floats(0, 1),
    "use_cache": st.sampled_from(("prompt", "dual", "auto", True, False)),
    "prompt_refresh_interval": st.none() | st.integers(1, 8),
    "stop_strings": st.lists(texts, max_size=2) | texts,
    "eos_token_id": st.integers(0, 9) | st.lists(st.integers(0, 9)),
    "sampler_config": st.fixed_dictionaries(
        {"_cls_name": st.sampled_from((*RULES, "Evil", "__import__"))},
        optional={"threshold": scalars, "factor": scalars, "bound": scalars},
    ),
    "compile_config": st.fixed_dictionaries(
        {}, optional={"mode": scalars, "dynamic": scalars, "backend": texts, "x": scalars}
    ),
    "cache_implementation": st.sampled_from(("static", "dynamic", "offloaded")),
}
right = st.fixed_dictionaries({}, optional=RIGHT)
STRATEGY = st.tuples(
    st.builds(lambda first, second: {**first, **second}, right, st.dictionaries(NAMES, values, max_size=2)) | right,
    st.none() | st.sampled_from((*PRESETS, "EXACT", "exakt")) | values,
)


@cache
def model() -> Any:
    """The bundled checkpoint."""
    return asking.load(device="cpu").model


def check(case: Any, place: Path) -> str:
    """Resolve it as `generate`, the command line and the server do."""
    options, preset = case
    found = attempt(find_preset, preset)
    resolved = attempt(resolve_aliases, options)
    if isinstance(resolved, Exception):
        return outcome(resolved)
    config = attempt(lambda: LladaVGenerationConfig(**resolved))
    if isinstance(config, LladaVGenerationConfig):
        lengths = attempt(config.schedule)
        if isinstance(lengths, tuple) and (lengths[0] % lengths[1] or not all(length > 0 for length in lengths)):
            raise Finding(f"a canvas, block and steps of {lengths}")
        attempt(config.hole_schedule, [3, 20])
        attempt(config.sampling)
        if not all(isinstance(token, int) and token >= 0 for token in config.stop_token_ids):
            raise Finding(f"stop tokens {config.stop_token_ids}")
    asked = Asking(options, preset if isinstance(found, Preset) else None)
    return outcome(config, attempt(resolve_generation, model(), asked))
