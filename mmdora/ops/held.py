"""The adapter on the product of a module that is called, such as a quantised linear: its weight is never read here.

With z0 = W0 x [T, O] from that module, which has a backward of its own, and the letters of `linear`:

    h  = d(x) A^T                       [T, R]
    z  = z0 + s h B^T                   [T, O]
    y  = c * z + bias
    dz0 = g * c                         dh = s (g * c) B
    dA = dh^T d(x)                      dB = s diag(c) g^T h
    dm = sum_t g * z / n                dx = dh A, beside what z0 gives back

The module rounds z0 to its dtype, so in half precision z has one rounding more than with a weight that `linear` reads.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mmdora.errors import MmdoraError
from mmdora.ops import passes, transforms
from mmdora.ops.compose import compose
from mmdora.ops.linear import Scale
from mmdora.ops.products import wide


def adapted_product(
    product: Tensor,
    x: Tensor,
    bias: Tensor | None,
    lora_A: Tensor | None,
    lora_B: Tensor | None,
    scaling: float,
    magnitude: Tensor | None = None,
    scaled: Scale | None = None,
    p: float = 0.0,
    as_torch: bool = False,
) -> Tensor:
    """y = c (product + s d(x) A^T B^T) + bias [..., O], in the dtype of the product.

    Args:
        product: W0 x [..., O].
        x: [..., I], in the same dtype.
        bias: [O] or None.

    The other arguments are those of `linear.adapted_linear`.
    """
    factor, inverse_norm, keep = scaled if scaled is not None else (None, None, False)
    rows, values = x.reshape(-1, x.shape[-1]), product.reshape(-1, product.shape[-1])
    adapter = lora_A, lora_B, magnitude, factor, inverse_norm
    y = _AdaptedProduct.apply(values, rows, bias, *adapter, scaling, p, as_torch, keep, torch.is_grad_enabled())
    return y.view(product.shape)


class _AdaptedProduct(torch.autograd.Function):
    """Forward and backward on rows: the product is [T, O], x [T, I]."""

    @staticmethod
    def forward(
        ctx: Any,
        product: Tensor,
        x: Tensor,
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
        acc, low, z_kept = wide(x.dtype), passes.low_rank_dtype(x), None
        with torch.autocast(x.device.type, enabled=False):
            how = {"as_torch": as_torch, "learns": learns}
            branch, mask, hidden, up, scaling = passes.low_rank(x, lora_A, lora_B, scaling, p, low, **how)
            if factor is None:
                assert hidden is not None and up is not None
                y = product.addmm(hidden, up.T) if product.dtype == up.dtype else product + hidden @ up.T
                y = (y if bias is None else y + bias.to(y.dtype)).to(product.dtype)
            else:
                # `compose` writes into z, and the product belongs to the module that made it.
                if hidden is not None and up is not None and product.dtype == hidden.dtype == acc:
                    z, hidden_left, up_left = product.addmm(hidden, up.T), None, None
                else:
                    z, hidden_left, up_left = product.to(acc, copy=True), hidden, up
                shift = None if bias is None else bias.to(acc)
                y, z_kept = compose(z, hidden_left, up_left, factor, shift, product.dtype, keep=keep)
        for_magnitude = None if magnitude is None else z_kept if keep else y
        for_lora_A = None if lora_A is None else branch
        adapter = lora_A, lora_B, factor, inverse_norm
        ctx.save_for_backward(for_lora_A, mask, bias, *adapter, hidden, for_magnitude)
        ctx.scaling, ctx.p, ctx.keep = scaling, p, keep
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        if transforms.differentiated():
            raise MmdoraError("a second backward through a quantised module; load the base without quantisation")
        branch, mask, bias, lora_A, lora_B, factor, inverse_norm, hidden, saved = ctx.saved_tensors
        wants_product, wants_x, wants_bias, wants_A, wants_B, *_ = ctx.needs_input_grad
        (g,) = grads
        db = g.sum(0, dtype=wide(g.dtype)).to(bias.dtype) if wants_bias else None
        dm = None
        with torch.autocast(g.device.type, enabled=False):
            if factor is not None:
                g, dm = passes.scaled_gradient(g, saved, bias, factor, inverse_norm, of_y=not ctx.keep)
            kept = passes.Kept(branch, mask, hidden, None, ctx.scaling)
            wants = (wants_x, wants_A, wants_B)
            dx, dA, dB = passes.low_rank_gradients(g, lora_A, lora_B, kept, ctx.p, wants)
        return g if wants_product else None, dx, db, dA, dB, dm, None, None, None, None, None, None, None
