"""Operations called with their shapes alone, and the storage they would make, booked."""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from mmdora.adapt.inject import Plan
from mmdora.config import MODALITIES

aten = torch.ops.aten
BACKWARD, OTHER = "backward", "other"


class Ledger(TorchDispatchMode):
    """Runs operations without arithmetic and books the storage they make: `live` and its `peak`, by label."""

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self.label = OTHER
        self.labels: Counter[str] = Counter()
        self.at_peak: dict[str, int] = {}
        self._known: dict[int, weakref.ref[Any]] = {}
        self._unreal: set[int] = set()  # storages whose numbers are none

    def start(self, kept: int) -> None:
        """Count from here: what is live now is `kept` (weights, counted elsewhere), and no part of the peak."""
        self.live -= kept
        self.labels = Counter({OTHER: self.live})
        self.peak, self.at_peak = self.live, dict(self.labels)

    @contextmanager
    def by_modality(self, model: Any, plan: Plan) -> Iterator[None]:
        """Label what a part's modules make by its modality."""
        modules, outer, hooks = dict(model.named_modules()), [], []

        def enter(modality: str) -> None:
            outer.append(self.label)
            self.label = modality

        for modality in MODALITIES:
            for prefix in getattr(plan.parts, modality):
                if prefix in modules:
                    module = modules[prefix]
                    hooks.append(module.register_forward_pre_hook(lambda *_, m=modality: enter(m)))
                    hooks.append(module.register_forward_hook(lambda *_: setattr(self, "label", outer.pop())))
        try:
            yield
        finally:
            self.label = OTHER
            for hook in hooks:
                hook.remove()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        tensors: list[Tensor] = []
        tree_map_only(Tensor, tensors.append, (args, kwargs))
        if func is aten._local_scalar_dense.default and self._is_unreal(args[0]):
            return False if args[0].dtype is torch.bool else 0
        schema = func._schema
        is_view = not schema.is_mutable and any(r.alias_info is not None for r in schema.returns)
        if is_view:
            return func(*args, **kwargs)
        makes_floats = _takes_device(func) and (kwargs.get("dtype") or torch.float32).is_floating_point
        if not any(map(self._is_unreal, tensors)) if tensors else not makes_floats:
            out = func(*args, **kwargs)
        elif func is aten.nonzero.default:  # of a comparison of numbers: what it looks for is rare
            out = torch.empty(0, args[0].ndim, dtype=torch.int64)
        elif schema.is_mutable:
            return self._written(schema, args, kwargs)
        elif func is aten.index.Tensor and (count := self._masked(args)) is not None:
            out = args[0].new_empty(count)
        else:
            out = self._shaped(func, args, kwargs)
        tree_map_only(Tensor, self._book, out)
        return out

    def _shaped(self, func: Any, args: Any, kwargs: Any) -> Any:
        """What `func` gives, by its meta kernel, with memory that nobody touches."""
        on_meta = tree_map_only(Tensor, lambda t: t.to("meta") if t.device.type != "meta" else t, (args, dict(kwargs)))
        if _takes_device(func):
            on_meta[1]["device"] = torch.device("meta")
        shaped = func(*on_meta[0], **on_meta[1])
        return tree_map_only(
            Tensor, lambda t: self._mark(torch.empty_strided(t.shape, t.stride(), dtype=t.dtype, device="cpu")), shaped
        )

    def _written(self, schema: Any, args: Any, kwargs: Any) -> Any:
        """What an operation that writes gives back: the tensors it would have written."""
        named = {a.name: v for a, v in zip(schema.arguments, args, strict=False)} | kwargs
        written = [
            named[a.name]
            for a in schema.arguments
            if a.alias_info is not None and a.alias_info.is_write and a.name in named
        ]
        return None if not schema.returns else written[0] if len(schema.returns) == 1 else tuple(written)

    def _masked(self, args: Any) -> list[int] | None:
        """The shape of x[mask] for one mask of known values."""
        value, (mask, *more) = args[0], args[1]
        if more or mask is None or mask.dtype is not torch.bool:
            return None
        return [0 if self._is_unreal(mask) else int(mask.sum()), *value.shape[mask.ndim :]]

    def _is_unreal(self, tensor: Tensor) -> bool:
        return tensor.is_floating_point() or tensor.untyped_storage()._cdata in self._unreal

    def _mark(self, tensor: Tensor) -> Tensor:
        self._unreal.add(tensor.untyped_storage()._cdata)
        return tensor

    def _book(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size, label = storage._cdata, storage.nbytes(), self.label
        if key in self._known:
            return

        def gone(_: Any) -> None:
            self.live -= size
            self.labels[label] -= size
            self._known.pop(key, None)
            self._unreal.discard(key)

        self._known[key] = weakref.ref(storage, gone)
        self.live += size
        self.labels[label] += size
        if self.live > self.peak:
            self.peak, self.at_peak = self.live, dict(self.labels)


def _takes_device(func: Any) -> bool:
    return any(argument.name == "device" for argument in func._schema.arguments)
