"""What the forward of a module of experts gets in the place of an adapted parameter: products, and no values.

Experts multiply by their parameters in a few ways, according to `experts_implementation` and to who wrote them. A view
takes part in these products through torch's `__torch_function__`, and computes them with W'. Anything else that code
may do with a parameter raises an error, because a view has no values.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from mmdora.errors import MmdoraError
from mmdora.layers import scales
from mmdora.layers.linear import with_dropout
from mmdora.ops.experts import expert_ends, segments
from mmdora.ops.linear import Scale


class ExpertsView:
    """The matrices W'[e] of an adapted parameter, for one forward of its module.

    Args:
        adapter: an `AdaptedExpertWeight`.
    """

    def __init__(self, adapter: Any):
        self.adapter = adapter
        self.whole = self
        """The view of all experts that this one was taken from; what is computed once is kept there."""
        self.which: int | Tensor | None = None
        """One expert, one for each row of the input [S], or None for all."""
        self.turned = False
        """Whether rows and columns of the stored matrices are exchanged."""

    @property
    def shape(self) -> torch.Size:
        count, *sizes = self.adapter.base_weight.shape
        sizes = sizes[::-1] if self.turned else sizes
        leading = [count] if self.which is None else [] if isinstance(self.which, int) else [len(self.which)]
        return torch.Size([*leading, *sizes])

    @property
    def dtype(self) -> torch.dtype:
        return self.adapter.base_weight.dtype

    @property
    def device(self) -> torch.device:
        return self.adapter.base_weight.device

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def mT(self) -> ExpertsView:  # noqa: N802 (torch's name)
        return self._taken(self.which, not self.turned)

    T = mT

    def dim(self) -> int:
        return len(self.shape)

    def size(self, dim: int | None = None) -> Any:
        return self.shape if dim is None else self.shape[dim]

    def data_ptr(self) -> int:
        return self.adapter.base_weight.data_ptr()

    def transpose(self, first: int, second: int) -> ExpertsView:
        last = {self.ndim - 1, self.ndim - 2}
        if {first % self.ndim, second % self.ndim} != last:
            raise self._refusal("exchanges its experts with an axis")
        return self.mT

    def __getitem__(self, which: Any) -> ExpertsView:
        if isinstance(which, Tensor) and which.dim() == 1 and not which.is_floating_point():
            return self._taken(which, self.turned)
        if self.which is not None or not isinstance(which, (int, Tensor)) or getattr(which, "ndim", 0):
            raise self._refusal(f"takes [{which!r:.40}] of it")
        return self._taken(int(which), self.turned)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        raise self._refusal(f"reads its {name}")

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = getattr(func, "__name__", str(func))
        if name in PRODUCTS:
            return PRODUCTS[name](*args, **(kwargs or {}))
        view = next(arg for arg in (*args, *(kwargs or {}).values()) if isinstance(arg, cls))
        raise view._refusal(f"calls {name} with it")

    @cached_property
    def parts(self) -> list[tuple[Any, ...]]:
        """A, B, s, m and the scale of each expert. Taking them all at once lets autograd put their gradients together
        once, where each selection of one would make gradients of all."""
        own, scaled = self.adapter, scales.current(self.adapter)
        none: Any = (None,) * len(own.base_weight)
        a, b, m = (none if part is None else part.unbind(0) for part in (own.gated_A, own.lora_B, own.magnitude))
        each = none
        if scaled is not None:
            each = [Scale(c, n, scaled.keep) for c, n in zip(scaled.factor, scaled.inverse_norm, strict=True)]
        return [(a[e], b[e], own.scaling, m[e], each[e]) for e in range(len(none))]

    def one(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """The product of x [..., I] with the one expert of this view."""
        if torch.is_autocast_enabled(x.device.type):
            x = x.to(torch.get_autocast_dtype(x.device.type))
        weight = self.adapter.matrix(self.adapter.base_weight)[self.which]
        return with_dropout(self.adapter, x, weight, bias, self.whole.parts[self.which])  # pyright: ignore

    def sorted(self, x: Tensor, ends: list[int]) -> Tensor:
        """The products of x [S, I], sorted by expert; `ends` has for each expert the row after its last."""
        return self.adapter(x, segments(ends))

    def by_row(self, x: Tensor) -> Tensor:
        """The product of each row of x [S, I] with its own expert."""
        assert isinstance(self.which, Tensor)
        chosen, order = self.which.sort(stable=True)
        experts = torch.arange(len(self.adapter.base_weight), device=chosen.device, dtype=chosen.dtype)
        offsets = torch.searchsorted(chosen, experts, right=True)
        y = self.sorted(x[order], expert_ends(offsets, len(x)))
        return torch.empty_like(y).index_copy(0, order, y)

    def expect(self, *, input_first: bool) -> None:
        """Raise if the matrices are not [I, O] (`input_first`), or not [O, I], where the product needs them so."""
        if (self.adapter.transposed != self.turned) != input_first:
            raise self._refusal("multiplies by it the other way round than its orientation says")

    def _taken(self, which: int | Tensor | None, turned: bool) -> ExpertsView:
        view = ExpertsView(self.adapter)
        view.whole, view.which, view.turned = self.whole, which, turned
        return view

    def _refusal(self, what: str) -> MmdoraError:
        return MmdoraError(
            f"the experts' {self.adapter.leaf} is adapted, and {type(self.adapter.owner.shell).__name__} {what}, which "
            "an adapter cannot follow; load the model with experts_implementation grouped_mm, batched_mm or eager, or "
            "leave the experts out of adapt.*.targets"
        )


def _linear(x: Tensor, view: ExpertsView, bias: Tensor | None = None) -> Tensor:
    view.expect(input_first=False)
    return view.one(x, bias)


def _matmul(x: Any, view: Any) -> Tensor:
    """x [..., I] with one expert, or [E, T, I] with all; or each row with its own expert, from either side."""
    if isinstance(x, ExpertsView):
        x.expect(input_first=False)
        return x.by_row(view.squeeze(-1)).unsqueeze(-1)
    view.expect(input_first=True)
    if isinstance(view.which, int):
        return view.one(x, None)
    if view.which is not None:
        return view.by_row(x.squeeze(1)).unsqueeze(1)
    experts, tokens, _ = x.shape
    y = view.sorted(x.flatten(0, 1), [tokens * (e + 1) for e in range(experts)])
    return y.unflatten(0, (experts, tokens))


def _grouped(
    x: Tensor, view: ExpertsView, offs: Tensor, bias: Tensor | None = None, out_dtype: torch.dtype | None = None
) -> Tensor:
    view.expect(input_first=True)
    if bias is not None or out_dtype not in (None, x.dtype):
        raise view._refusal("asks for a bias or another dtype in grouped_mm")
    return view.sorted(x, expert_ends(offs, len(x)))


PRODUCTS = {
    "linear": _linear,
    "matmul": _matmul,
    "mm": _matmul,
    "bmm": _matmul,
    "grouped_mm": _grouped,
    "_grouped_mm": _grouped,
    "grouped_mm_fallback": _grouped,
}
"""The functions of torch and transformers by which experts multiply."""
