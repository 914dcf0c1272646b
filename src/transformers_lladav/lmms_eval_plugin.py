"""What lmms-eval finds by the entry point `lmms_eval.models`: where the model is.

lmms-eval reads this whatever model it is asked for, so that nothing else is imported.
"""

from typing import Any


def manifest() -> Any:
    """What lmms-eval asks its plug-ins for.

    Returns:
        A `ModelManifest`: the name of the model, and the classes of both of lmms-eval's interfaces.
    """
    from lmms_eval.models.registry_v2 import ModelManifest

    module = "transformers_lladav.lmms_eval_model"
    return ModelManifest("lladav", simple_class_path=f"{module}.LladaVSimple", chat_class_path=f"{module}.LladaV")
