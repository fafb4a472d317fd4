"""The passes over [T, O] that a magnitude adds to the products: one in forward, one in backward.

Forward composes in fp32 (or better) and rounds once: a c near 1 changes z by less than a step of bf16, so a z that was
rounded before would not show it. Backward makes the scaled gradient and the magnitude's gradient in the same pass.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mmdora.ops import backend, operators
from mmdora.ops.products import add_mm, cast, mm, overwrites

BLOCK_ELEMENTS = 2**17
"""Elements of [T, O] that a CPU takes at a time: 512 KiB in fp32, which stay in a core's cache from one operation to
the next."""


def compose(
    z: Tensor,
    hidden: Tensor | None,
    up: Tensor | None,
    factor: Tensor,
    bias: Tensor | None,
    dtype: torch.dtype,
    *,
    keep: bool,
) -> tuple[Tensor, Tensor | None]:
    """y = c (z + h (s B)^T) + bias [T, O] in `dtype`, and z + h (s B)^T in `dtype` if `keep`.

    Args:
        z: x W0^T [T, O], fp32 or better; overwritten.
        hidden: h [T, R] and up: s B [O, R], both in z's dtype or both in half precision; or both None.
        factor: c [O] and bias: [O] or None, in z's dtype.
    """
    if hidden is not None and up is not None and hidden.dtype == z.dtype:
        z = add_mm(z, hidden, up.T)
        hidden = up = None
    if backend.on_triton(z):
        from mmdora.ops import kernels

        y, kept = kernels.compose(z, hidden, up, factor, bias, dtype, keep)
        return y, kept if keep else None
    if hidden is not None and up is not None:
        low_rank = mm(hidden, up.T, z.dtype)
        z = z.add_(low_rank) if overwrites() else z + low_rank
    into = z if overwrites() and not keep else None
    y = torch.mul(z, factor, out=into) if bias is None else torch.addcmul(bias, z, factor, out=into)
    return cast(y, dtype), cast(z, dtype) if keep else None


def scale_and_reduce(g: Tensor, saved: Tensor, factor: Tensor, shift: Tensor | None) -> tuple[Tensor, Tensor]:
    """g * c [T, O] in g's dtype, and sum_t g * (saved - shift) [O] in c's.

    Args:
        g: dL/dy [T, O].
        saved: y or z [T, O], in g's dtype.
        factor: c [O] and shift: what to take off `saved` [O] or None, fp32 or better.
    """
    if backend.on_triton(g):
        from mmdora.ops import kernels

        return kernels.scale_and_reduce(g, saved, factor, shift)
    if g.device.type != "cpu" or torch.compiler.is_compiling():
        return _scaled_and_reduced(g, saved, factor, shift, rows=len(g))
    return _in_blocks(g, saved, factor, shift)


def _scaled_and_reduced(
    g: Tensor, saved: Tensor, factor: Tensor, shift: Tensor | None, rows: int
) -> tuple[Tensor, Tensor]:
    """`scale_and_reduce` in plain torch, so many rows at a time."""
    scaled, total = g.new_empty(g.shape), factor.new_zeros(g.shape[1])
    for part, value, into in zip(*(tensor.split(max(1, rows)) for tensor in (g, saved, scaled)), strict=True):
        fine = part.to(factor.dtype)
        scratch = into if into.dtype == fine.dtype else torch.empty_like(fine)
        product = (
            torch.mul(fine, value, out=scratch) if shift is None else torch.sub(value, shift, out=scratch).mul_(fine)
        )
        total += product.sum(0)
        torch.mul(fine, factor, out=into)
    return scaled, total


def _run_in_blocks(g: Tensor, saved: Tensor, factor: Tensor, shift: Tensor | None) -> tuple[Tensor, Tensor]:
    return _scaled_and_reduced(g, saved, factor, shift, rows=BLOCK_ELEMENTS // g.shape[1])


def _without_arithmetic(g: Tensor, saved: Tensor, factor: Tensor, shift: Tensor | None) -> tuple[Tensor, Tensor]:
    return g.new_empty(g.shape), factor.new_empty(g.shape[1])


_in_blocks = operators.register(
    "scale_and_reduce_in_blocks(Tensor g, Tensor saved, Tensor factor, Tensor? shift) -> (Tensor, Tensor)",
    _run_in_blocks,
    _without_arithmetic,
)
