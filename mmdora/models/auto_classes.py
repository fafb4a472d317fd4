"""Registers VL-BART with the Auto classes of `transformers`, without importing `transformers`.

`import mmdora` must stay quick, so an import finder waits until somebody imports the modules of the Auto classes, and
registers VL-BART right after that. Models are registered as stand-ins, which import the real class when a model is
made, because `transformers` may be in the middle of its own imports at that moment.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

HOMES = {
    "VLBartConfig": "mmdora.models.vlbart.config",
    "VLBartForConditionalGeneration": "mmdora.models.vlbart.head",
    "VLBartProcessor": "mmdora.models.vlbart.processor",
    "OpenClipVisionConfig": "mmdora.models.open_clip.config",
    "OpenClipVisionModel": "mmdora.models.open_clip.tower",
}


def register() -> None:
    """Register with the Auto classes that are already imported, and with the others when they are imported."""
    for name, hook in HOOKS.items():
        if name in sys.modules:
            hook(sys.modules[name])
    if not any(isinstance(finder, _AfterImport) for finder in sys.meta_path):
        sys.meta_path.insert(0, _AfterImport())


def _get(name: str) -> Any:
    return getattr(import_module(HOMES[name]), name)


def _configs(auto: ModuleType) -> None:
    for config in (_get("VLBartConfig"), _get("OpenClipVisionConfig")):
        auto.AutoConfig.register(config.model_type, config, exist_ok=True)


def _models(auto: ModuleType) -> None:
    for kind, config, model in (
        (auto.AutoModelForImageTextToText, "VLBartConfig", "VLBartForConditionalGeneration"),
        (auto.AutoModel, "OpenClipVisionConfig", "OpenClipVisionModel"),
    ):
        kind.register(_get(config), _stand_in(model, config_class=_get(config)), exist_ok=True)


def _processors(auto: ModuleType) -> None:
    auto.AutoProcessor.register(_get("VLBartConfig"), _stand_in("VLBartProcessor"), exist_ok=True)


HOOKS = {
    "transformers.models.auto.configuration_auto": _configs,
    "transformers.models.auto.modeling_auto": _models,
    "transformers.models.auto.processing_auto": _processors,
}


def _stand_in(name: str, **attributes: Any) -> type:
    """A class whose constructors import the class `name` and call the same constructor there."""

    def hand_on(method: str) -> Any:
        def call(cls: type, *args: Any, **kwargs: Any) -> Any:
            return getattr(_get(name), method)(*args, **kwargs)

        return classmethod(call)

    made = {method: hand_on(method) for method in ("from_pretrained", "_from_config")}
    return type(name, (), {"__module__": HOMES[name], **made, **attributes})


class _AfterImport(MetaPathFinder):
    """Finds the modules in `HOOKS` as usual, and calls the hook of each after the module has run."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname not in HOOKS:
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is None or spec.loader is None:
            return None
        run = spec.loader.exec_module

        def exec_module(module: ModuleType) -> None:
            run(module)
            HOOKS[fullname](module)

        spec.loader.exec_module = exec_module  # type: ignore[method-assign] (of this one spec)
        return spec
