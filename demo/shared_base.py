"""Keeps several adapters on one base in memory, and switches between them without merging or copying."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from mmdora.adapt.inject import adapted_modules
from mmdora.adapt.plan import Plan
from mmdora.adapter_files.adapters import fingerprint, load_adapter, read_adapter
from mmdora.config import ImageTokens
from mmdora.errors import MmdoraError
from mmdora.models.locate import Location

Place = tuple[nn.Module, str]
"""A module, and the name of a parameter that it holds itself."""


class WornAdapter:
    """The parts of one adapter that are put into the base: adapted modules, and parameters trained in full."""

    def __init__(self, plan: Plan, modules: dict[str, nn.Module], full: dict[Place, nn.Parameter]):
        self.plan, self.modules, self.full = plan, modules, full

    @property
    def nbytes(self) -> int:
        """Bytes of memory that the adapter needs beside the base."""
        own = [getattr(module, name) for module in self.modules.values() for name in ("lora_A", "lora_B", "magnitude")]
        tensors: dict[int, Tensor] = {id(t): t for t in [*own, *self.full.values()] if t is not None}
        return sum(tensor.nbytes for tensor in tensors.values())


class SharedBase:
    """A base that wears one of several adapters at a time. `wear` copies nothing and takes microseconds per module.

    Adapted modules share the base's weights. Parameters that were trained in full, and all parameters tied to them, are
    exchanged. Two threads must not use it at the same time.
    """

    def __init__(self, model: Any, processor: Any):
        self.model, self.processor = model, processor
        self.worn: WornAdapter | None = None

    def add(self, location: Location) -> WornAdapter:
        """Read an adapter of this base.

        Raises:
            MmdoraError: in the cases of `load_adapter`; or if it has a budget of image tokens, carries buffers, or is
                no adapter at all.
        """
        self.wear(None)
        folder = location.adapter
        if folder is None:
            raise MmdoraError(f"{location.name}: no adapter here")
        if location.image_tokens != ImageTokens():
            raise MmdoraError(f"{folder}: has its own number of image tokens; load it without --shared-base")
        plan, tensors = read_adapter(self.model, folder, fingerprint)
        if buffers := tensors.keys() & {name for name, _ in self.model.named_buffers()}:
            raise MmdoraError(f"{folder}: carries the buffer {min(buffers)}; load it without --shared-base")
        wanted = {id(self.model.get_parameter(name)) for name in plan.full}
        plain = {entry.name: self.model.get_submodule(entry.name) for entry in plan.entries}
        bases = {place: p for place, p in self._places().items() if id(p) in wanted}
        copies = {id(p): nn.Parameter(p.detach().clone(), requires_grad=False) for p in bases.values()}
        full = {place: copies[id(p)] for place, p in bases.items()}
        _put(full)
        try:
            load_adapter(self.model, folder)
            modules: dict[str, nn.Module] = dict(adapted_modules(self.model))
        finally:
            for name, module in plain.items():
                self.model.set_submodule(name, module)
            _put(bases)
            if hasattr(self.model, "mmdora_plan"):
                del self.model.mmdora_plan
        self.model.requires_grad_(False)
        return WornAdapter(plan, modules, full)

    def wear(self, adapter: WornAdapter | None) -> None:
        """Replace the adapter that is worn by this one, or by none."""
        if adapter is self.worn:
            return
        if self.worn is not None:
            for name, module in self._plain.items():
                self.model.set_submodule(name, module)
            _put(self._bases)
            del self.model.mmdora_plan
            self.worn = None
        if adapter is not None:
            self._plain = {name: self.model.get_submodule(name) for name in adapter.modules}
            self._bases = {place: place[0]._parameters[place[1]] for place in adapter.full}
            _put(adapter.full)
            for name, module in adapter.modules.items():
                self.model.set_submodule(name, module)
            self.model.mmdora_plan = adapter.plan
            self.worn = adapter

    def _places(self) -> dict[Place, nn.Parameter]:
        modules = self.model.modules()
        return {(module, leaf): p for module in modules for leaf, p in module._parameters.items() if p is not None}


def _put(parameters: Any) -> None:
    for (module, leaf), parameter in parameters.items():
        module._parameters[leaf] = parameter
