"""LLaDA-V for transformers: answers about pictures by masked diffusion.

Importing the package registers its classes with transformers' Auto classes.
"""

from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoModelForMaskedLM,
    AutoModelForMultimodalLM,
    AutoProcessor,
)

# Older releases hand out a placeholder from the top level where torchvision is missing; ours does not need it.
from transformers.models.auto.image_processing_auto import AutoImageProcessor

from .asking import BUNDLED_CHECKPOINT
from .configuration_lladav import LladaVConfig, LladaVTextConfig
from .generation_configuration_lladav import LladaVGenerationConfig
from .generation_lladav import LladaVGenerationOutput
from .image_processing_lladav import LladaVImageProcessor
from .modeling_lladav import LladaVForMaskedDiffusion, LladaVModel
from .modeling_text_lladav import LladaVTextModel
from .processing_lladav import LladaVProcessor

__version__ = "0.1.0"

AutoConfig.register("lladav", LladaVConfig, exist_ok=True)
AutoConfig.register("lladav_text", LladaVTextConfig, exist_ok=True)
for _auto in (
    AutoModel,
    AutoModelForImageTextToText,
    AutoModelForMultimodalLM,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
):
    _auto.register(LladaVConfig, LladaVForMaskedDiffusion, exist_ok=True)
AutoModel.register(LladaVTextConfig, LladaVTextModel, exist_ok=True)
AutoProcessor.register(LladaVConfig, LladaVProcessor, exist_ok=True)
AutoImageProcessor.register(LladaVConfig, slow_image_processor_class=LladaVImageProcessor, exist_ok=True)

__all__ = [
    "BUNDLED_CHECKPOINT",
    "LladaVConfig",
    "LladaVForMaskedDiffusion",
    "LladaVGenerationConfig",
    "LladaVGenerationOutput",
    "LladaVImageProcessor",
    "LladaVModel",
    "LladaVProcessor",
    "LladaVTextConfig",
    "LladaVTextModel",
]
