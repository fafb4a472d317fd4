"""A ledger of memory: it runs operations on shapes alone and books the storage that their results would take.

Integers and booleans are computed, because shapes depend on them, such as the number of image tokens or the positions
that have labels. Floating-point tensors have no values, but for the model's inputs and what is computed from them or
from integers alone: Idefics3 looks into the pixels for tiles that are padding, and Gemma 4 into weights of places.
torch's own tools do not suffice. Under `FakeTensorMode` no tensor has values, so LLaVA's forward stops where it
compares the number of image tokens with that of image features (`DataDependentOutputException`, torch 2.14, tried with
`MemTracker` of `torch.distributed._tools`). `MemTracker` is also private, and it books by module, not by modality.

For LLaVA-1.5-7B's recipe (16 rows of 2,048 tokens, 95,000 operations) this takes 10 CPU seconds.
"""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from mmdora.adapt.plan import Plan
from mmdora.config import MODALITIES
from mmdora.ops.dropout import draw_zeros
from mmdora.ops.experts import expert_ends

aten = torch.ops.aten
BACKWARD, OTHER = "backward", "other"
COMPUTED = 2**25
"""Elements up to which a floating-point tensor that was computed from integers alone keeps its values."""
HALF_ONLY = (aten._grouped_mm.default,)
"""Operations that run in fp32 too, but whose meta kernels refuse it (torch 2.14): the experts of mixtures."""


class Ledger(TorchDispatchMode):
    """Runs operations without their arithmetic, and books the bytes of their results under the current `label`.

    Attributes:
        live: bytes in use now.
        labels: label -> bytes in use now.
        peak: the most bytes that were in use at a time.
        at_peak: label -> bytes in use at the peak.
    """

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self.label = OTHER
        self.labels: Counter[str] = Counter()
        self.at_peak: dict[str, int] = {}
        self._known: dict[int, weakref.ref[Any]] = {}
        self._unreal: set[int] = set()
        """Identities of the storages that were never written, and whose values therefore mean nothing."""
        self._real: set[int] = set()
        """Identities of the storages of floating-point tensors that have values."""
        self._shapes: dict[Any, Any] = {}
        """Operation, and shapes and dtypes of its arguments -> its results on the meta device."""

    def start(self, kept: int) -> None:
        """Begin to count the peak here, leaving out the `kept` bytes of weights that are in use already."""
        self.live -= kept
        self.labels = Counter({OTHER: self.live})
        self.peak, self.at_peak = self.live, dict(self.labels)

    def given(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The model's inputs, of which those with floats are copied, booked, and known to have values."""
        self._real |= {value.untyped_storage()._cdata for value in inputs.values() if value.is_floating_point()}
        return {name: value.clone() if value.is_floating_point() else value for name, value in inputs.items()}

    @contextmanager
    def by_modality(self, model: Any, plan: Plan) -> Iterator[None]:
        """Inside the block, book what a module's forward makes under the modality of the part that it belongs to."""
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
        tensors = [*_tensors(args), *_tensors(tuple(kwargs.values()))]
        if func is aten._local_scalar_dense.default and self._is_unreal(args[0]):
            return False if args[0].dtype is torch.bool else 0
        if func is expert_ends and self._is_unreal(args[0]):
            offsets, rows = args
            return [rows * (expert + 1) // len(offsets) for expert in range(len(offsets))]
        facts = _facts(func)
        if facts.is_view:
            return func(*args, **kwargs)
        if func is draw_zeros:
            # The number of zeros that dropout draws is random, so its expectation is booked.
            count, p = args
            out = torch.empty(int(count * p), dtype=torch.int64)
        elif not any(map(self._is_unreal, tensors)) if tensors else not self._makes_floats(func, facts, args, kwargs):
            out = func(*args, **kwargs)
            floats = [t for t in _tensors((out,)) if t.is_floating_point()]
            # Masks of attention are floats from integers too, and arithmetic with them would take long.
            if any(t.is_floating_point() for t in tensors) or all(t.numel() <= COMPUTED for t in floats):
                self._real |= {t.untyped_storage()._cdata for t in floats if tensors}
        elif func is aten.nonzero.default:
            # DoRA's forward looks for rare values (rows that cancel to 0, NaN); without values, none are assumed.
            out = torch.empty(0, args[0].ndim, dtype=torch.int64)
        elif func._schema.is_mutable:
            return self._written(func._schema, args, kwargs)
        elif func is aten.index.Tensor and (count := self._masked(args)) is not None:
            out = args[0].new_empty(count)
        else:
            out = self._shaped(func, facts, args, kwargs)
        for tensor in _tensors((out,)):
            self._book(tensor)
        return out

    def _makes_floats(self, func: Any, facts: _Facts, args: Any, kwargs: Any) -> bool:
        """Whether an operation without tensors makes floats. `arange` may have no dtype and goes by its numbers."""
        return facts.takes_device and any(
            t.is_floating_point() for t in _tensors((self._made(func, facts, args, kwargs),))
        )

    def _shaped(self, func: Any, facts: _Facts, args: Any, kwargs: Any) -> Any:
        """The results of `func` as memory that is reserved and never touched."""
        return _mapped(self._made(func, facts, args, kwargs), self._unreal_like)

    def _made(self, func: Any, facts: _Facts, args: Any, kwargs: Any) -> Any:
        """The results of `func` on the meta device.

        The meta kernel runs only once for each combination of shapes and dtypes, because a model of 32 equal layers
        calls each operation with the same shapes over and over.
        """
        key = func, _described(args), _described(kwargs), torch.is_autocast_enabled("cpu")
        if key not in self._shapes:
            on_meta = tree_map_only(Tensor, lambda t: t.to("meta"), (args, dict(kwargs)))
            if facts.takes_device:
                on_meta[1]["device"] = torch.device("meta")
            self._shapes[key] = func(*on_meta[0], **on_meta[1]) if func not in HALF_ONLY else _as_half(func, *on_meta)
        return self._shapes[key]

    def _unreal_like(self, meta: Tensor) -> Tensor:
        """A tensor of the same shape and dtype, whose values mean nothing."""
        tensor = torch.empty_strided(meta.shape, meta.stride(), dtype=meta.dtype, device="cpu")
        self._unreal.add(tensor.untyped_storage()._cdata)
        return tensor

    def _written(self, schema: Any, args: Any, kwargs: Any) -> Any:
        """The tensors that an in-place operation would have written to, which are also its results."""
        named = {a.name: v for a, v in zip(schema.arguments, args, strict=False)} | kwargs
        written = [
            named[a.name]
            for a in schema.arguments
            if a.alias_info is not None and a.alias_info.is_write and a.name in named
        ]
        self._real -= {tensor.untyped_storage()._cdata for tensor in _tensors(written)}
        return None if not schema.returns else written[0] if len(schema.returns) == 1 else tuple(written)

    def _masked(self, args: Any) -> list[int] | None:
        """The shape of x[mask] if there is a single mask; None for any other index."""
        value, (mask, *more) = args[0], args[1]
        if more or mask is None or mask.dtype is not torch.bool:
            return None
        return [0 if self._is_unreal(mask) else int(mask.sum()), *value.shape[mask.ndim :]]

    def _is_unreal(self, tensor: Tensor) -> bool:
        if tensor.is_meta or tensor.is_complex():  # Llama 4 keeps its rotations apart from its parameters.
            return True
        key = tensor.untyped_storage()._cdata
        return key in self._unreal or (tensor.is_floating_point() and key not in self._real)

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
            self._real.discard(key)

        self._known[key] = weakref.ref(storage, gone)
        self.live += size
        self.labels[label] += size
        if self.live > self.peak:
            self.peak, self.at_peak = self.live, dict(self.labels)


def _as_half(func: Any, args: Any, kwargs: Any) -> Any:
    """The result of an operation whose meta kernel takes bf16 alone, in the dtype of its first argument."""
    half = tree_map_only(Tensor, lambda t: t.to(torch.bfloat16) if t.is_floating_point() else t, (args, kwargs))
    return func(*half[0], **half[1]).to(args[0].dtype)


class _Facts(NamedTuple):
    """Facts about an operation from its schema."""

    is_view: bool
    takes_device: bool
    """Whether it can make a tensor without being given one, as `zeros` does."""


@cache
def _facts(func: Any) -> _Facts:
    schema = func._schema
    return _Facts(
        is_view=not schema.is_mutable and any(result.alias_info is not None for result in schema.returns),
        takes_device=any(argument.name == "device" for argument in schema.arguments),
    )


def _tensors(values: Any) -> list[Tensor]:
    """The tensors among arguments or results, also inside lists. torch's pytree would take ten times as long."""
    tensors = []
    for value in values:
        if isinstance(value, Tensor):
            tensors.append(value)
        elif isinstance(value, (list, tuple)):
            tensors += _tensors(value)
    return tensors


def _mapped(value: Any, function: Callable[[Tensor], Tensor]) -> Any:
    """Apply `function` to a tensor, or to the tensors in a list or tuple."""
    if isinstance(value, (list, tuple)):
        return type(value)(_mapped(part, function) for part in value)
    return function(value) if isinstance(value, Tensor) else value


def _described(value: Any) -> Any:
    """Turn arguments into a key of a dict; a tensor is described by everything that a meta kernel can see of it."""
    if isinstance(value, Tensor):
        return tuple(value.shape), value.stride(), value.dtype
    if isinstance(value, (list, tuple)):
        return tuple(map(_described, value))
    if isinstance(value, dict):
        return tuple((name, _described(part)) for name, part in value.items())
    # As keys 1, 1.0 and True are equal, but as arguments they are not, so the type is part of the key.
    return type(value), value
