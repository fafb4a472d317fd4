"""mmdora: adapt vision-language models with DoRA and LoRA, modality by modality."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from mmdora.auto_classes import register as _register

__version__ = "0.1.0"

_HOMES = {
    "load": "mmdora.models.load",
    "find_parts": "mmdora.modality",
    "inject": "mmdora.injectors",
    "merge": "mmdora.injectors",
    "save_adapter": "mmdora.adapters",
    "load_adapter": "mmdora.adapters",
    "analyze": "mmdora.analysis.run",
    "MmdoraError": "mmdora.errors",
}
__all__ = [
    "MmdoraError",
    "__version__",
    "analyze",
    "find_parts",
    "inject",
    "load",
    "load_adapter",
    "merge",
    "save_adapter",
]

if TYPE_CHECKING:
    from mmdora.adapters import load_adapter, save_adapter
    from mmdora.analysis.run import analyze
    from mmdora.errors import MmdoraError
    from mmdora.injectors import inject, merge
    from mmdora.modality import find_parts
    from mmdora.models.load import load


def __getattr__(name: str) -> Any:
    # lazy, so that `mmdora --help` does not wait for torch
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'mmdora' has no attribute {name!r}")


_register()  # our architectures, in the Auto classes of transformers
