"""LLaDA-V for transformers: answers about pictures by masked diffusion.

Importing the package makes transformers' Auto classes know it. The classes themselves are imported when they are
first used, so that the import costs next to nothing.
"""

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .registration import register_when_loaded

if TYPE_CHECKING:
    from .commit_rules_lladav import ConfidenceFactor, ConfidenceThreshold, EntropyBound, FixedSchedule
    from .configuration_lladav import LladaVConfig, LladaVTextConfig
    from .constraints_lladav import AnswerChoices
    from .generation_configuration_lladav import LladaVGenerationConfig
    from .generation_lladav import LladaVGenerationOutput
    from .image_processing_lladav import LladaVImageProcessor
    from .modeling_lladav import LladaVForMaskedDiffusion, LladaVModel
    from .modeling_text_lladav import LladaVTextModel
    from .presets_lladav import PRESETS
    from .processing_lladav import LladaVProcessor
    from .recording import Recorder
    from .scoring_lladav import LladaVScoringOutput
    from .streaming import LladaVIteratorStreamer, LladaVStreamer, stream_generate

__version__ = "0.1.0"

BUNDLED_CHECKPOINT = Path(__file__).parent / "bundled_checkpoint"

_HOME = {
    "AnswerChoices": "constraints_lladav",
    "ConfidenceFactor": "commit_rules_lladav",
    "ConfidenceThreshold": "commit_rules_lladav",
    "EntropyBound": "commit_rules_lladav",
    "FixedSchedule": "commit_rules_lladav",
    "LladaVConfig": "configuration_lladav",
    "LladaVForMaskedDiffusion": "modeling_lladav",
    "LladaVGenerationConfig": "generation_configuration_lladav",
    "LladaVGenerationOutput": "generation_lladav",
    "LladaVImageProcessor": "image_processing_lladav",
    "LladaVIteratorStreamer": "streaming",
    "LladaVModel": "modeling_lladav",
    "LladaVProcessor": "processing_lladav",
    "LladaVScoringOutput": "scoring_lladav",
    "LladaVStreamer": "streaming",
    "LladaVTextConfig": "configuration_lladav",
    "LladaVTextModel": "modeling_text_lladav",
    "PRESETS": "presets_lladav",
    "Recorder": "recording",
    "stream_generate": "streaming",
}

__all__ = [
    "BUNDLED_CHECKPOINT",
    "PRESETS",
    "AnswerChoices",
    "ConfidenceFactor",
    "ConfidenceThreshold",
    "EntropyBound",
    "FixedSchedule",
    "LladaVConfig",
    "LladaVForMaskedDiffusion",
    "LladaVGenerationConfig",
    "LladaVGenerationOutput",
    "LladaVImageProcessor",
    "LladaVIteratorStreamer",
    "LladaVModel",
    "LladaVProcessor",
    "LladaVScoringOutput",
    "LladaVStreamer",
    "LladaVTextConfig",
    "LladaVTextModel",
    "Recorder",
    "stream_generate",
]


def __getattr__(name: str) -> Any:
    """Import a public class when it is first asked for."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_HOME[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


register_when_loaded()
