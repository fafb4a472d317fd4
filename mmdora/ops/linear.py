"""The adapted linear as one autograd function: LoRA, DoRA and magnitude alone.

With n constant (section 4.3 of arXiv 2402.09353) and c = m / n, for x [T, I] and g = dL/dy [T, O]:

    h  = x A^T                          [T, R]
    z  = x W0^T + s h B^T               [T, O]
    y  = c * z + bias
    dh = s (g * c) B                    [T, R]
    dA = dh^T x                         dB = s diag(c) g^T h
    dm = sum_t g * z / n                dx = (g * c) W0 + dh A          dbias = sum_t g

B A is never formed, and a weight in half precision is never upcast whole. With a magnitude, z is fp32 (or better)
and y is rounded once. LoRA's y is one product added to another inside the matrix multiplication, in x's dtype.
Backward keeps x, h and y; the operation that follows keeps y anyway. In training, dropout d may act on the input of
the low-rank branch: h = d(x) A^T. `compose`, `products` and `dropout` know the devices.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from mmdora.errors import MmdoraError
from mmdora.ops import passes, transforms
from mmdora.ops.products import wide

SMALL_FACTOR = 1e-2
"""Backward recovers z = (y - bias) / c from y. An error of y grows by 1 / |c| there, so under this |c| forward keeps z
itself: at 1e-2, fp32 still has five digits of z."""


class Scale(NamedTuple):
    """What a magnitude m and the norms n make of each row. These are constants between two optimizer steps."""

    factor: Tensor
    """c = m / n [O], fp32 or better; 1 where n = 0, so that an all-zero row can still learn."""
    inverse_norm: Tensor
    """1 / n [O]; 0 where n = 0."""
    keep: bool
    """Whether forward keeps z for backward, because some |c| is too small to divide by."""


def scale(magnitude: Tensor, norm: Tensor, *, keep: bool | None = None) -> Scale:
    """`Scale` of m [O] and n [O].

    Args:
        magnitude: m, fp32 or better.
        norm: n, in the same dtype.
        keep: as in `Scale`; None looks at the values, which waits for the device.
    """
    with torch.no_grad():
        zero = norm == 0
        divisor = norm.masked_fill(zero, 1)
        inverse = torch.where(zero, 0, 1 / divisor)
        factor = torch.where(zero, 1, magnitude / divisor)
        return Scale(factor, inverse, small([factor])[0] if keep is None else keep)


def small(factors: Sequence[Tensor]) -> list[bool]:
    """Whether some |c| is too small to divide by, for each of these c [O]. However many there are, it waits once."""
    flags = torch.stack([(factor.abs() < SMALL_FACTOR).any() for factor in factors]).cpu()
    return [bool(flag) for flag in flags]


def adapted_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    lora_A: Tensor | None,
    lora_B: Tensor | None,
    scaling: float,
    magnitude: Tensor | None = None,
    scaled: Scale | None = None,
    p: float = 0.0,
    as_torch: bool = False,
) -> Tensor:
    """y = c (x W0^T + s d(x) A^T B^T) + bias [..., O], in x's dtype.

    Args:
        x: [..., I].
        weight: frozen W0 [O, I]; gets no gradient.
        bias: [O] or None.
        lora_A: [R, I] and lora_B: [O, R], fp32 or better, or in `passes.low_rank_dtype` where no gradient is asked for;
            both None for a magnitude alone.
        scaling: s.
        magnitude: m [O], fp32 or better, with `scaled`, its `Scale`; both None for LoRA.
        p: the probability in [0, 1) with which dropout d sets an element to zero; 0 without low-rank factors.
        as_torch: whether d draws the very elements that torch's own dropout draws.
    """
    factor, inverse_norm, keep = scaled if scaled is not None else (None, None, False)
    if transforms.active():
        return _plain(x, weight, bias, lora_A, lora_B, magnitude, factor, inverse_norm, scaling=scaling, p=p)
    rows = x.reshape(-1, x.shape[-1])
    adapter = lora_A, lora_B, magnitude, factor, inverse_norm
    y = _AdaptedLinear.apply(rows, weight, bias, *adapter, scaling, p, as_torch, keep, torch.is_grad_enabled())
    return y.view(*x.shape[:-1], weight.shape[0])


class _AdaptedLinear(torch.autograd.Function):
    """Forward and backward on rows: x is [T, I], the result [T, O]."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        lora_A: Tensor | None,
        lora_B: Tensor | None,
        magnitude: Tensor | None,
        factor: Tensor | None,
        inverse_norm: Tensor | None,
        scaling: float,
        p: float,
        as_torch: bool,
        keep: bool,
        learns: bool,
    ) -> Tensor:
        low_rank = lora_A, lora_B
        how = {"as_torch": as_torch, "keep": keep, "learns": learns}
        y, kept = passes.forward(x, weight, bias, *low_rank, factor, scaling, p, **how)
        # The gradient of m needs z, which backward reads from y unless z is kept. That of A needs d(x).
        for_magnitude = None if magnitude is None else kept.z if keep else y
        for_lora_A = None if lora_A is None else kept.branch
        adapter = *low_rank, magnitude, factor, inverse_norm
        ctx.save_for_backward(for_lora_A, kept.mask, weight, bias, *adapter, kept.hidden, for_magnitude)
        ctx.scaling, ctx.p, ctx.keep = kept.scaling, p, keep
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        if transforms.differentiated():
            return _differentiable(ctx, *grads)
        branch, mask, weight, bias, lora_A, lora_B, _, factor, inverse_norm, hidden, saved = ctx.saved_tensors
        wants_x, _, wants_bias, wants_A, wants_B, *_ = ctx.needs_input_grad
        (g,) = grads
        db = g.sum(0, dtype=wide(g.dtype)).to(bias.dtype) if wants_bias else None
        kept = passes.Kept(branch, mask, hidden, saved, ctx.scaling)
        matrix, wants = (weight, bias, lora_A, lora_B, factor, inverse_norm), (wants_x, wants_A, wants_B)
        dx, dA, dB, dm = passes.backward(g, *matrix, kept, ctx.p, wants, of_y=not ctx.keep)
        return dx, None, db, dA, dB, dm, None, None, None, None, None, None, None


def _plain(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    lora_A: Tensor | None,
    lora_B: Tensor | None,
    magnitude: Tensor | None,
    factor: Tensor | None,
    inverse_norm: Tensor | None,
    *,
    scaling: float,
    p: float = 0.0,
) -> Tensor:
    """`adapted_linear` in torch's own operations, for `transforms`; W0 in half precision is upcast whole."""
    acc = wide(x.dtype)
    with torch.autocast(x.device.type, enabled=False):
        z = F.linear(x.to(acc), weight.to(acc))
        if lora_A is not None and lora_B is not None:
            branch = F.dropout(x, p) if p else x
            z = z + scaling * F.linear(F.linear(branch.to(acc), lora_A.to(acc)), lora_B.to(acc))
        if magnitude is not None and factor is not None and inverse_norm is not None:
            z = z * varying(magnitude, factor, inverse_norm)
        return (z if bias is None else z + bias.to(acc)).to(x.dtype)


def varying(magnitude: Tensor, factor: Tensor, inverse_norm: Tensor) -> Tensor:
    """c, whose gradient for m is 1 / n. Written as a sum, because c is no multiple of m where n = 0."""
    return factor + (magnitude - magnitude.detach()) * inverse_norm


def _differentiable(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
    """What backward returns, as differentiable functions of the inputs and of g.

    Raises:
        MmdoraError: if forward did not keep what that needs.
    """
    branch, mask, weight, bias, lora_A, lora_B, magnitude, factor, inverse_norm, _, saved = ctx.saved_tensors
    wants_x, _, wants_bias, *wanted = ctx.needs_input_grad[:6]
    if mask is not None:
        raise MmdoraError("a second backward through dropout, which does not keep its input; call eval() before")
    if branch is not None:
        inputs = branch, weight, bias, lora_A, lora_B, magnitude, factor, inverse_norm
        needs = (wants_x, False, wants_bias, *wanted, False, False)
        return (
            *transforms.gradients(partial(_plain, scaling=ctx.scaling), inputs, g, needs),
            None,
            None,
            None,
            None,
            None,
        )
    if ctx.keep:
        raise MmdoraError(
            "a second backward through magnitudes near 0 without low-rank factors, for which forward does not keep "
            "its input; use torch.func.grad instead"
        )
    acc = wide(g.dtype)
    with torch.autocast(g.device.type, enabled=False):
        c, shift = varying(magnitude, factor, inverse_norm), 0 if bias is None else bias.to(acc)
        dx = ((g * c) @ weight.to(acc)).to(g.dtype) if wants_x else None
        db = g.to(acc).sum(0).to(bias.dtype) if wants_bias and bias is not None else None
        dm = (g * (saved - shift) / c).sum(0) * inverse_norm if wanted[-1] else None
    return dx, None, db, None, None, dm, None, None, None, None, None, None, None
