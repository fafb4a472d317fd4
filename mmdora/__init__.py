"""mmdora: adapt vision-language models with DoRA and LoRA, modality by modality."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from mmdora.models.auto_classes import register as _register
from mmdora.version import __version__

_HOMES = {
    "load": "mmdora.models.load",
    "find_parts": "mmdora.adapt.modality",
    "inject": "mmdora.adapt.inject",
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
__all__ = [
    "MmdoraError",
    "__version__",
    "analyze",
    "disable",
    "find_parts",
    "inject",
    "load",
    "load_adapter",
    "merge",
    "reference",
    "save_adapter",
    "unload",
    "use",
]

if TYPE_CHECKING:
    from mmdora.adapt.inject import inject, merge, unload
    from mmdora.adapt.modality import find_parts
    from mmdora.adapt.switch import disable, reference, use
    from mmdora.adapter_files.adapters import load_adapter, save_adapter
    from mmdora.analysis.run import analyze
    from mmdora.errors import MmdoraError
    from mmdora.models.load import load


def __getattr__(name: str) -> Any:
    # lazy, so that `mmdora --help` does not wait for torch
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'mmdora' has no attribute {name!r}")


_register()  # our architectures, in the Auto classes of transformers
