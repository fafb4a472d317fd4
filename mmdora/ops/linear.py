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
Backward keeps x, h and y, which the next operation keeps anyway. `compose` and `products` know the devices.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from mmdora.ops.compose import compose, scale_and_reduce
from mmdora.ops.products import mm, project, wide

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
    zeros: Tensor | None = None,
) -> Tensor:
    """y = c (x W0^T + s d(x) A^T B^T) + bias, in x's dtype.

    Args:
        x: [..., I].
        weight: frozen W0 [O, I]; gets no gradient.
        bias: [O] or None.
        lora_A: [R, I] and lora_B: [O, R], fp32 or better; both None for a magnitude alone.
        scaling: s.
        magnitude: m [O], fp32 or better, with `scaled`, its `Scale`; both None for LoRA.
        dropped: d(x), the input of the low-rank branch, where it is not x.
        zeros: instead of `dropped`, the int64 indices of the elements of x that are zero in it; the rest are x's.
    """
    factor, inverse_norm, keep = scaled if scaled is not None else (None, None, False)
    rows = x.reshape(-1, x.shape[-1])
    branch = None if dropped is None else dropped.reshape(rows.shape)
    low_rank = lora_A, lora_B, magnitude, factor, inverse_norm
    y = _AdaptedLinear.apply(rows, branch, zeros, weight, bias, *low_rank, scaling, keep)
    return y.view(*x.shape[:-1], weight.shape[0])


class _AdaptedLinear(torch.autograd.Function):
    """Forward and backward on rows: x and `dropped` are [T, I], the result [T, O]."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        dropped: Tensor | None,
        zeros: Tensor | None,
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
        if zeros is not None:
            branch = x.reshape(-1).index_fill(0, zeros, 0).view_as(x)
        hidden = up = kept = None
        with torch.autocast(device, enabled=False):
            base = weight.to(x.dtype)
            if lora_A is not None and lora_B is not None:
                hidden, up = mm(branch, lora_A.to(low).T, low), (lora_B * scaling).to(low)
            if factor is not None:
                shift = None if bias is None else bias.to(acc)
                if hidden is not None and up is not None and x.dtype == acc:
                    z, branch_terms = (hidden @ up.T).addmm_(x, base.T), (None, None)
                else:
                    z, branch_terms = project(x, base, acc), (hidden, up)
                y, kept = compose(z, *branch_terms, factor, shift, x.dtype, keep=keep)
            else:
                assert hidden is not None and up is not None
                y = hidden @ up.T if bias is None else torch.addmm(bias.to(low), hidden, up.T)
                # The large product comes second: it is added in the accumulator, before the one rounding.
                y = y.to(x.dtype).addmm_(x, base.T)
        ctx.save_for_backward(
            None if lora_A is None else branch, zeros,
            weight, bias, lora_A, lora_B, factor, inverse_norm, hidden,
            None if magnitude is None else kept if keep else y,
        )  # fmt: skip
        ctx.scaling, ctx.keep, ctx.separate = scaling, keep, dropped is not None
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        branch, zeros, weight, bias, lora_A, lora_B, factor, inverse_norm, hidden, saved = ctx.saved_tensors
        wants_x, wants_dropped, _, _, wants_bias, wants_A, wants_B, *_ = ctx.needs_input_grad
        (g,) = grads
        acc = wide(g.dtype)
        dx = d_branch = dA = dB = dm = None
        db = g.sum(0, dtype=acc).to(bias.dtype) if wants_bias else None
        with torch.autocast(weight.device.type, enabled=False):
            if factor is not None:
                shift = None if bias is None or ctx.keep else bias.to(acc)
                g, dm = scale_and_reduce(g, saved, factor, shift)
                dm *= inverse_norm if ctx.keep else inverse_norm / factor
            if lora_A is not None and lora_B is not None:
                low = hidden.dtype
                d_hidden = mm(g, (lora_B * ctx.scaling).to(low), low)
                dB = mm(hidden.T, g, acc).T.mul_(ctx.scaling) if wants_B else None  # faster than g^T h
                dA = mm(d_hidden.T, branch, acc) if wants_A else None
                if wants_dropped if ctx.separate else wants_x:
                    d_branch = mm(d_hidden, lora_A.to(low), low).to(g.dtype)
                    if zeros is not None:
                        d_branch.view(-1).index_fill_(0, zeros, 0)
            if wants_x:
                base = weight.to(g.dtype)
                dx = g @ base if d_branch is None or ctx.separate else d_branch.addmm_(g, base)
        return dx, d_branch if ctx.separate else None, None, None, db, dA, dB, dm, None, None, None, None
