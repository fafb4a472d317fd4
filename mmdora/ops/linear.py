"""The adapted linear as one autograd function: LoRA, DoRA and magnitude alone.

With n constant (section 4.3 of arXiv 2402.09353) and c = m / n, for x [T, I] and g = dL/dy [T, O]:

    h  = x A^T                          [T, R]
    z  = x W0^T + s h B^T               [T, O]
    y  = c * z + bias
    dh = s (g * c) B                    [T, R]
    dA = dh^T x                         dB = s diag(c) g^T h
    dm = sum_t g * z / n                dx = (g * c) W0 + dh A

B A is never formed. The sum is composed in fp32 (or better) and rounded once, to x's dtype.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from mmdora.ops.norm import wide

SMALL = 1e-2
"""Where |c| is under this, z cannot be had back from y = c z + bias, and z itself is kept."""


class Scale(NamedTuple):
    """The magnitude against the norm, as forward and backward use it; constants between optimizer steps."""

    factor: Tensor
    """c = m / n [O], fp32 or better; 1 where n = 0, so that an all-zero row can still learn."""
    inverse_norm: Tensor
    """1 / n [O]; 0 where n = 0."""
    keep: bool
    """Keep z for backward: some |c| is too small to divide by."""


def scale(magnitude: Tensor, norm: Tensor, *, keep: bool | None = None) -> Scale:
    """`Scale` of m [O] and n [O]. `keep=True` asks for z to be kept without looking at the data."""
    with torch.no_grad():
        zero = norm == 0
        divisor = norm.masked_fill(zero, 1)
        inverse = torch.where(zero, 0, 1 / divisor)
        factor = torch.where(zero, 1, magnitude / divisor)
        return Scale(factor, inverse, bool((factor.abs() < SMALL).any()) if keep is None else keep)


def adapted_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    lora_A: Tensor | None,
    lora_B: Tensor | None,
    scaling: float,
    magnitude: Tensor | None = None,
    scaled: Scale | None = None,
    dropped: Tensor | None = None,
) -> Tensor:
    """y = c (x W0^T + s d(x) A^T B^T) + bias, in x's dtype.

    Args:
        x: [..., I].
        weight: frozen W0 [O, I]; gets no gradient.
        bias: frozen [O] or None.
        lora_A: [R, I] and lora_B: [O, R], fp32 or better; both None for a magnitude alone.
        scaling: s.
        magnitude: m [O], fp32 or better, with `scaled`, its `Scale`; both None for LoRA.
        dropped: d(x), the input of the low-rank branch, where it is not x.
    """
    factor, inverse_norm, keep = scaled if scaled is not None else (None, None, False)
    rows = x.reshape(-1, x.shape[-1])
    branch = None if dropped is None else dropped.reshape(rows.shape)
    y = _AdaptedLinear.apply(rows, branch, weight, bias, lora_A, lora_B, magnitude, factor, inverse_norm, scaling, keep)
    return y.view(*x.shape[:-1], weight.shape[0])


def _mm(a: Tensor, b: Tensor, dtype: torch.dtype) -> Tensor:
    """a @ b, accumulated and returned in `dtype`."""
    if a.dtype == b.dtype == dtype:
        return a @ b
    if a.is_cuda and a.dtype == b.dtype and dtype == torch.float32:
        return torch.mm(a, b, out_dtype=dtype)
    return a.to(dtype) @ b.to(dtype)


def _add_mm(out: Tensor, a: Tensor, b: Tensor, scaling: float, low: torch.dtype) -> None:
    """out += scaling * a @ b, with the operands rounded to `low` first."""
    if low == out.dtype:
        out.addmm_(a, b, alpha=scaling)
    else:
        out.add_(_mm(a.to(low), b.to(low), out.dtype), alpha=scaling)


class _AdaptedLinear(torch.autograd.Function):
    """Forward and backward on rows: x and `dropped` are [T, I], the result [T, O]."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        dropped: Tensor | None,
        weight: Tensor,
        bias: Tensor | None,
        lora_A: Tensor | None,
        lora_B: Tensor | None,
        magnitude: Tensor | None,
        factor: Tensor | None,
        inverse_norm: Tensor | None,
        scaling: float,
        keep: bool,
    ) -> Tensor:
        device, acc = x.device.type, wide(x.dtype)
        # Under autocast the low-rank products run in its dtype too; a half-precision base alone keeps them in fp32.
        low = x.dtype if torch.is_autocast_enabled(device) else acc
        branch = x if dropped is None else dropped
        hidden = None
        with torch.autocast(device, enabled=False):
            base = weight.to(x.dtype).T
            shift = None if bias is None else bias.to(acc)
            if factor is None and shift is not None and x.dtype == acc:
                z = torch.addmm(shift, x, base)
                shift = None
            else:
                z = _mm(x, base, acc)
            if lora_A is not None and lora_B is not None:
                hidden = _mm(branch.to(low), lora_A.to(low).T, acc)
                _add_mm(z, hidden, lora_B.T, scaling, low)
            into = None if keep else z
            if factor is None:
                y = z if shift is None else z.add_(shift)
            elif shift is None:
                y = torch.mul(z, factor, out=into)
            else:
                y = torch.addcmul(shift, z, factor, out=into)
            y = y.to(x.dtype)
        ctx.save_for_backward(
            None if lora_A is None else branch,
            weight, bias, lora_A, lora_B, factor, inverse_norm, hidden,
            None if magnitude is None else z.to(x.dtype) if keep else y,
        )  # fmt: skip
        ctx.scaling, ctx.keep, ctx.low, ctx.dtype, ctx.separate = scaling, keep, low, x.dtype, dropped is not None
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        branch, weight, bias, lora_A, lora_B, factor, inverse_norm, hidden, saved = ctx.saved_tensors
        acc, low, scaling = wide(ctx.dtype), ctx.low, ctx.scaling
        wants_x, wants_dropped = ctx.needs_input_grad[:2]
        dx = d_dropped = dA = dB = dm = d_hidden = None
        with torch.autocast(weight.device.type, enabled=False):
            g = grads[0].to(acc)
            if saved is not None:
                dm = (g * saved).sum(0)
                if not ctx.keep:
                    if bias is not None:
                        dm -= bias * g.sum(0)
                    dm /= factor
                dm *= inverse_norm
            if factor is not None:
                g = g * factor
            if lora_A is not None and lora_B is not None:
                g_low = g.to(low)
                dB = _mm(g_low.T, hidden.to(low), acc).mul_(scaling)
                d_hidden = _mm(g_low, lora_B.to(low), acc).mul_(scaling)
                dA = _mm(d_hidden.to(low).T, branch.to(low), acc)
            if wants_x:
                dx = _mm(g.to(ctx.dtype), weight.to(ctx.dtype), acc)
                if d_hidden is not None and lora_A is not None and not ctx.separate:
                    _add_mm(dx, d_hidden, lora_A, 1.0, low)
                dx = dx.to(ctx.dtype)
            if wants_dropped and d_hidden is not None and lora_A is not None:
                d_dropped = _mm(d_hidden.to(low), lora_A.to(low), acc).to(ctx.dtype)
        return dx, d_dropped, None, None, dA, dB, dm, None, None, None, None
