"""Forward and backward of the adapted product of some rows with one matrix, outside autograd.

`linear` has the equations. It calls these once for its matrix, and `experts` once for each expert that has rows.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from mmdora.ops import dropout
from mmdora.ops.compose import compose, scale_and_reduce
from mmdora.ops.products import add_mm, mm, project, wide


class Kept(NamedTuple):
    """What backward needs of a forward, beside its arguments."""

    branch: Tensor
    """d(x) without its factor [T, I]; x itself without dropout."""
    mask: Tensor | None
    """What dropout drew; None without dropout."""
    hidden: Tensor | None
    """h [T, R]; None for a magnitude alone."""
    z: Tensor | None
    """z [T, O] in x's dtype if forward was told to keep it. Backward also takes y in its place."""
    scaling: float
    """s, with dropout's factor 1 / (1 - p) in it."""


def low_rank_dtype(x: Tensor) -> torch.dtype:
    """The dtype of h [T, R]: x's under autocast; with a half-precision base alone the low-rank products are in fp32."""
    return x.dtype if torch.is_autocast_enabled(x.device.type) else wide(x.dtype)


def forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    lora_A: Tensor | None,
    lora_B: Tensor | None,
    factor: Tensor | None,
    scaling: float,
    p: float,
    *,
    as_torch: bool,
    keep: bool,
    learns: bool = True,
) -> tuple[Tensor, Kept]:
    """y = c (x W0^T + s d(x) A^T B^T) + bias [T, O] in x's dtype, and what backward needs.

    Args:
        x: [T, I].
        weight: W0 [O, I].
        bias: [O] or None.
        lora_A: [R, I] and lora_B: [O, R], fp32 or better, or in `low_rank_dtype` where nothing is learned; both None
            for a magnitude alone.
        factor: c [O], or None for LoRA.
        scaling: s.
        p: dropout's probability, 0 for none; with `as_torch` it draws as torch does.
        keep: whether to keep z.
        learns: whether a backward may follow.
    """
    device, acc, low, z_kept = x.device.type, wide(x.dtype), low_rank_dtype(x), None
    with torch.autocast(device, enabled=False):
        base = weight.to(x.dtype)
        how = {"as_torch": as_torch, "learns": learns}
        branch, mask, hidden, up, scaling = low_rank(x, lora_A, lora_B, scaling, p, low, **how)
        if factor is not None:
            shift = None if bias is None else bias.to(acc)
            # z = x W0^T + h (s B)^T [T, O]. If the dtypes allow it, both products are summed here; else `compose`
            # adds the second one.
            if hidden is not None and up is not None and x.dtype == acc:
                z, rest = add_mm(hidden @ up.T, x, base.T), (None, None)
            else:
                z, rest = project(x, base, acc), (hidden, up)
            # y = c z + bias, rounded once to x's dtype.
            y, z_kept = compose(z, *rest, factor, shift, x.dtype, keep=keep)
        else:
            assert hidden is not None and up is not None
            # LoRA: y = h (s B)^T + bias + x W0^T. The large product comes second: it is added in the accumulator,
            # before the one rounding.
            y = hidden @ up.T if bias is None else torch.addmm(bias.to(up.dtype), hidden, up.T)
            y = add_mm(y.to(x.dtype), x, base.T)
    return y, Kept(branch, mask, hidden, z_kept, scaling)


def backward(
    g: Tensor,
    weight: Tensor,
    shift: Tensor | None,
    lora_A: Tensor | None,
    lora_B: Tensor | None,
    factor: Tensor | None,
    inverse_norm: Tensor | None,
    kept: Kept,
    p: float,
    wants: tuple[bool, bool, bool],
    *,
    of_y: bool,
) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
    """The gradients of x, A, B and m; None for what is not wanted or not there.

    Args:
        g: dL/dy [T, O].
        shift: the bias [O] or None.
        inverse_norm: 1 / n [O] where there is a factor.
        kept: of the forward; z or y [T, O] in the place of its z where there is a factor.
        wants: whether the gradients of x, A and B are wanted.
        of_y: whether y is there, and c was large enough to divide by.
    """
    wants_x, dx, dm = wants[0], None, None
    with torch.autocast(weight.device.type, enabled=False):
        if factor is not None and inverse_norm is not None and kept.z is not None:
            g, dm = scaled_gradient(g, kept.z, shift, factor, inverse_norm, of_y=of_y)
        d_branch, dA, dB = low_rank_gradients(g, lora_A, lora_B, kept, p, wants)
        if wants_x:
            base = weight.to(g.dtype)
            dx = g @ base if d_branch is None else d_branch.addmm_(g, base)
    return dx, dA, dB, dm


def low_rank(
    x: Tensor,
    lora_A: Tensor | None,
    lora_B: Tensor | None,
    scaling: float,
    p: float,
    low: torch.dtype,
    *,
    as_torch: bool,
    learns: bool,
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None, float]:
    """d(x) without its factor, what dropout drew, h [T, R], s B [O, R], and s with dropout's factor in it.

    Args:
        low: the dtype of h, by `low_rank_dtype`, which has to be asked before autocast is disabled.

    The other arguments are those of `forward`.
    """
    branch, mask = x, None
    if lora_A is None or lora_B is None:
        return branch, mask, None, None, scaling
    # d(x): the factor 1 / (1 - p) that its elements still lack goes into s.
    if p:
        branch, mask, share = dropout.drop(x, p, as_torch=as_torch)
        scaling = scaling / share
    # h = d(x) A^T [T, R] and s B [O, R]. Where nothing is learned, s goes into h instead: an answer is made
    # token by token, and then h is much smaller than B.
    hidden = mm(branch, lora_A.to(low).T, low)
    if learns:
        return branch, mask, hidden, (lora_B * scaling).to(low), scaling
    return branch, mask, hidden * scaling, lora_B.to(low), scaling


def scaled_gradient(
    g: Tensor, z: Tensor, shift: Tensor | None, factor: Tensor, inverse_norm: Tensor, *, of_y: bool
) -> tuple[Tensor, Tensor]:
    """g * c [T, O], and the gradient of m [O]; see `backward`. With y in the place of z, (y - bias) / c is z."""
    shift = shift.to(factor.dtype) if of_y and shift is not None else None
    g, dm = scale_and_reduce(g, z, factor, shift)
    return g, dm.mul_(inverse_norm / factor if of_y else inverse_norm)


def low_rank_gradients(
    g: Tensor, lora_A: Tensor | None, lora_B: Tensor | None, kept: Kept, p: float, wants: tuple[bool, bool, bool]
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """The gradients of x through d(x), of A and of B, for g * c [T, O]; see `backward`."""
    (wants_x, wants_A, wants_B), acc = wants, wide(g.dtype)
    if lora_A is None or lora_B is None or kept.hidden is None:
        return None, None, None
    d_branch, low = None, kept.hidden.dtype
    d_hidden = mm(g, (lora_B * kept.scaling).to(low), low)
    # This is g^T h; the product h^T g, transposed, takes less time.
    dB = mm(kept.hidden.T, g, acc).T.mul_(kept.scaling) if wants_B else None
    dA = mm(d_hidden.T, kept.branch, acc) if wants_A else None
    if wants_x:
        d_branch = mm(d_hidden, lora_A.to(low), low).to(g.dtype)
        if kept.mask is not None:
            d_branch = dropout.gradient(d_branch, kept.mask, p)
    return d_branch, dA, dB
