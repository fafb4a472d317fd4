"""The adapted embedding as one autograd function: LoRA, DoRA and magnitude alone.

Dimensions: T tokens, V rows of the weight, D embedding dimensions, R rank. With n constant and c = m / n [D]:

    h  = A[:, ids]^T                    [T, R]
    z  = W0[ids] + s h B^T              [T, D]
    y  = c * z
    dm = sum_t g * z / n                dB = s (g * c)^T h
    dh = s (g * c) B                    dA: the columns dh summed per token

Backward gathers z and h again, so that forward keeps only the ids.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mmdora.ops import transforms
from mmdora.ops.linear import Scale, varying
from mmdora.ops.norm import wide
from mmdora.ops.products import add_mm, cast, overwrites


def adapted_embedding(
    ids: Tensor,
    weight: Tensor,
    lora_A: Tensor | None,
    lora_B: Tensor | None,
    scaling: float,
    magnitude: Tensor | None = None,
    scaled: Scale | None = None,
    padding: int | None = None,
) -> Tensor:
    """y = c (W0[ids] + s A[:, ids]^T B^T) [..., D], in the weight's dtype, composed in fp32 or better.

    Args:
        ids: [...], integers.
        weight: frozen W0 [V, D]; gets no gradient.
        lora_A: [R, V] and lora_B: [D, R], fp32 or better; both None for a magnitude alone.
        scaling: s.
        magnitude: m [D], fp32 or better, with `scaled`, its `Scale`; both None for LoRA.
        padding: the id whose column of A gets no gradient; None for none.
    """
    factor, inverse_norm, _ = scaled if scaled is not None else (None, None, False)
    if transforms.active():
        inputs = weight, lora_A, lora_B, magnitude, factor, inverse_norm
        return _plain(*inputs, ids=ids, scaling=scaling, padding=padding)
    y = _AdaptedEmbedding.apply(
        ids.reshape(-1), weight, lora_A, lora_B, magnitude, factor, inverse_norm, scaling, padding
    )
    return y.view(*ids.shape, weight.shape[1])


def _gather(
    ids: Tensor, weight: Tensor, lora_A: Tensor | None, lora_B: Tensor | None, scaling: float
) -> tuple[Tensor, Tensor | None]:
    """z [T, D] and h [T, R], fp32 or better."""
    z = weight.index_select(0, ids).to(wide(weight.dtype))
    if lora_A is None or lora_B is None:
        return z, None
    hidden = lora_A.index_select(1, ids).T
    return add_mm(z, hidden, lora_B.T, alpha=scaling), hidden


class _AdaptedEmbedding(torch.autograd.Function):
    """Forward and backward on ids [T]."""

    @staticmethod
    def forward(
        ctx: Any,
        ids: Tensor,
        weight: Tensor,
        lora_A: Tensor | None,
        lora_B: Tensor | None,
        magnitude: Tensor | None,
        factor: Tensor | None,
        inverse_norm: Tensor | None,
        scaling: float,
        padding: int | None,
    ) -> Tensor:
        with torch.autocast(weight.device.type, enabled=False):
            z, _ = _gather(ids, weight, lora_A, lora_B, scaling)
            y = z if factor is None else z.mul_(factor) if overwrites() else z * factor
        ctx.save_for_backward(ids, weight, lora_A, lora_B, magnitude, factor, inverse_norm)
        ctx.scaling, ctx.padding = scaling, padding
        return cast(y, weight.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        ids, weight, lora_A, lora_B, magnitude, factor, inverse_norm = ctx.saved_tensors
        if transforms.differentiated():
            plain = partial(_plain, ids=ids, scaling=ctx.scaling, padding=ctx.padding)
            inputs = weight, lora_A, lora_B, magnitude, factor, inverse_norm
            wanted = (False, *ctx.needs_input_grad[2:5], False, False)
            return None, *transforms.gradients(plain, inputs, grads[0], wanted), None, None
        dA = dB = dm = None
        with torch.autocast(weight.device.type, enabled=False):
            g = grads[0].to(wide(weight.dtype))
            z, hidden = _gather(ids, weight, lora_A, lora_B, ctx.scaling)
            if factor is not None:
                dm = (g * z).sum(0).mul_(inverse_norm)
                g = g * factor
            if lora_A is not None and lora_B is not None and hidden is not None:
                dB = (g.T @ hidden).mul_(ctx.scaling)
                dh = (g @ lora_B).mul_(ctx.scaling)
                padding = -1 if ctx.padding is None else ctx.padding
                dA = torch.ops.aten.embedding_dense_backward(dh, ids, lora_A.shape[1], padding, False).T
        return None, None, dA, dB, dm, None, None, None, None


def _plain(
    weight: Tensor,
    lora_A: Tensor | None,
    lora_B: Tensor | None,
    magnitude: Tensor | None,
    factor: Tensor | None,
    inverse_norm: Tensor | None,
    *,
    ids: Tensor,
    scaling: float,
    padding: int | None,
) -> Tensor:
    """`adapted_embedding` in torch's own operations, for `transforms`."""
    with torch.autocast(weight.device.type, enabled=False):
        z = F.embedding(ids, weight).to(wide(weight.dtype))
        if lora_A is not None and lora_B is not None:
            z = z + scaling * F.linear(F.embedding(ids, lora_A.T, padding_idx=padding), lora_B)
        if magnitude is not None and factor is not None and inverse_norm is not None:
            z = z * varying(magnitude, factor, inverse_norm)
        return z.to(weight.dtype)
