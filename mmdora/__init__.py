"""mmdora: adapt vision-language models with DoRA and LoRA, modality by modality."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from mmdora.models.auto_classes import register as _register
from mmdora.version import __version__

_HOMES = {
    "generate": "mmdora.predict.question",
    "compare": "mmdora.evaluate.models",
    "load": "mmdora.models.load",
    "find_parts": "mmdora.adapt.modality",
    "inject": "mmdora.adapter_files.warm_start",
    "merge": "mmdora.adapt.inject",
    "unload": "mmdora.adapt.inject",
    "disable": "mmdora.adapt.switch",
    "reference": "mmdora.adapt.switch",
    "use": "mmdora.adapt.switch",
    "save_adapter": "mmdora.adapter_files.adapters",
    "load_adapter": "mmdora.adapter_files.adapters",
    "analyze": "mmdora.analysis.run",
    "MmdoraError": "mmdora.errors",
}
_CALLED = ("train", "evaluate", "export")
"""Packages that are called as the function of their name."""
__all__ = [
    "MmdoraError",
    "__version__",
    "analyze",
    "compare",
    "disable",
    "evaluate",
    "export",
    "find_parts",
    "generate",
    "inject",
    "load",
    "load_adapter",
    "merge",
    "reference",
    "save_adapter",
    "train",
    "unload",
    "use",
]

if TYPE_CHECKING:
    from mmdora.adapt.inject import merge, unload
    from mmdora.adapt.modality import find_parts
    from mmdora.adapt.switch import disable, reference, use
    from mmdora.adapter_files.adapters import load_adapter, save_adapter
    from mmdora.adapter_files.warm_start import inject
    from mmdora.analysis.run import analyze
    from mmdora.errors import MmdoraError
    from mmdora.evaluate.models import compare, evaluate
    from mmdora.export.run import export
    from mmdora.models.load import load
    from mmdora.predict.question import generate
    from mmdora.train.run import train


def __getattr__(name: str) -> Any:
    # Lazy, so that neither `import mmdora` nor `mmdora --help` waits for torch.
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    if name in _CALLED:
        return import_module(f"mmdora.{name}")
    raise AttributeError(f"module 'mmdora' has no attribute {name!r}")


_register()  # our architectures, in the Auto classes of transformers
