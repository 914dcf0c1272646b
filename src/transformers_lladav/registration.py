"""Makes transformers' Auto classes know LLaDA-V, without importing either before somebody needs them.

Importing transformers' model machinery takes seconds. So nothing of it is imported here: a finder on `sys.meta_path`
waits for the modules that hold the Auto classes and registers ours the moment one of them has been loaded.
"""

import importlib
import sys
from collections.abc import Callable, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any, NamedTuple

PACKAGE = __package__ or "transformers_lladav"
AUTO = "transformers.models.auto"
MODEL_CLASSES = (
    "AutoModel", "AutoModelForImageTextToText", "AutoModelForMultimodalLM", "AutoModelForCausalLM",
    "AutoModelForMaskedLM",
)  # fmt: skip


class Registration(NamedTuple):
    """What is registered once both modules are there.

    Attributes:
        auto: module of transformers with the Auto classes.
        own: module of this package with the classes to register.
        register: does it, given both modules.
    """

    auto: str
    own: str
    register: Callable[[Any, Any], None]


def _register_configs(auto: Any, own: Any) -> None:
    auto.AutoConfig.register("lladav", own.LladaVConfig, exist_ok=True)
    auto.AutoConfig.register("llava_llada", own.LladaVOfficialConfig, exist_ok=True)
    auto.AutoConfig.register("lladav_text", own.LladaVTextConfig, exist_ok=True)


def _register_models(auto: Any, own: Any) -> None:
    for name in MODEL_CLASSES:
        getattr(auto, name).register(own.LladaVConfig, own.LladaVForMaskedDiffusion, exist_ok=True)
    auto.AutoModel.register(own.LladaVTextModel.config_class, own.LladaVTextModel, exist_ok=True)


def _register_processors(auto: Any, own: Any) -> None:
    config = importlib.import_module(f"{PACKAGE}.configuration_lladav").LladaVConfig
    auto.AutoProcessor.register(config, own.LladaVProcessor, exist_ok=True)


def _register_image_processors(auto: Any, own: Any) -> None:
    config = importlib.import_module(f"{PACKAGE}.configuration_lladav").LladaVConfig
    auto.AutoImageProcessor.register(config, slow_image_processor_class=own.LladaVImageProcessor, exist_ok=True)


REGISTRATIONS = (
    Registration(f"{AUTO}.configuration_auto", f"{PACKAGE}.configuration_lladav", _register_configs),
    Registration(f"{AUTO}.modeling_auto", f"{PACKAGE}.modeling_lladav", _register_models),
    Registration(f"{AUTO}.processing_auto", f"{PACKAGE}.processing_lladav", _register_processors),
    Registration(f"{AUTO}.image_processing_auto", f"{PACKAGE}.image_processing_lladav", _register_image_processors),
)


def _loaded(name: str) -> ModuleType | None:
    """The module, if it has been imported to its end."""
    module = sys.modules.get(name)
    return None if module is None or getattr(module.__spec__, "_initializing", False) else module


def _complete(entry: Registration) -> None:
    """Register if the Auto classes are there; a module of ours that is just being imported calls again at its end."""
    auto = _loaded(entry.auto)
    if auto is not None and (entry.own not in sys.modules or _loaded(entry.own)):
        entry.register(auto, importlib.import_module(entry.own))


class _NotifyingLoader(Loader):
    """Loads as another loader does, then completes the registrations that waited for the module."""

    def __init__(self, loader: Loader) -> None:
        self.loader = loader

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self.loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self.loader.exec_module(module)
        if module.__spec__ is not None:
            module.__spec__.loader = module.__loader__ = self.loader
            module.__spec__._initializing = False  # type: ignore[attr-defined]
        for entry in REGISTRATIONS:
            if module.__name__ in (entry.auto, entry.own):
                _complete(entry)


class _Waiter(MetaPathFinder):
    """Finds the awaited modules as the other finders would, with a notifying loader."""

    awaited = frozenset(name for entry in REGISTRATIONS for name in (entry.auto, entry.own))

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name not in self.awaited:
            return None
        for finder in sys.meta_path:
            spec = None if finder is self else finder.find_spec(name, path, target)
            if spec is not None and spec.loader is not None:
                spec.loader = _NotifyingLoader(spec.loader)
                return spec
        return None


def register_when_loaded() -> None:
    """Register now what transformers has loaded already, and the rest when it loads it. Safe to call again."""
    if not any(isinstance(finder, _Waiter) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Waiter())
    for entry in REGISTRATIONS:
        _complete(entry)
