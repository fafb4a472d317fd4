"""The adapted products of many experts as one autograd function: each expert multiplies the rows routed to it.

Expert e has the matrix W0[e] [O, I], factors A[e] and B[e], and magnitudes m[e], as one adapted linear has them; see
`linear` for the equations. An expert without rows costs nothing, and its gradients are 0. The gradients of all experts
are written into one tensor. Autograd's own selection of one expert of E would make a tensor of all E each time.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mmdora.errors import MmdoraError
from mmdora.ops import operators, passes, transforms
from mmdora.ops.linear import Scale

Segments = list[tuple[int, slice]]
"""The experts that have rows, each with its rows."""


def _run(offsets: Tensor, rows: int) -> list[int]:
    return offsets.tolist()


expert_ends = operators.register("expert_ends(Tensor offsets, int rows) -> int[]", _run)
"""The values of `offsets` [E], for each expert the row after its last among so many `rows`. It is an operation of its
own, so that the ledger of memory, which has no routing, can put equal shares in its place."""


def segments(ends: list[int]) -> Segments:
    """The experts that have rows, given for each expert the row after its last; rows are sorted by expert."""
    starts = [0, *ends[:-1]]
    return [(e, slice(start, stop)) for e, (start, stop) in enumerate(zip(starts, ends, strict=True)) if stop > start]


def adapted_experts(
    x: Tensor,
    routed: Segments,
    weight: Tensor,
    lora_A: Tensor | None,
    lora_B: Tensor | None,
    scaling: float,
    magnitude: Tensor | None = None,
    scaled: Scale | None = None,
    p: float = 0.0,
    as_torch: bool = False,
) -> Tensor:
    """y = c[e] (x W0[e]^T + s d(x) A[e]^T B[e]^T) [S, O] for the rows of each expert e, in x's dtype.

    Args:
        x: [S, I], sorted by expert.
        routed: the rows of each expert. Rows of no expert give 0.
        weight: frozen W0 [E, O, I], or a view of that shape; gets no gradient.
        lora_A: [E, R, I] and lora_B: [E, O, R], fp32 or better; both None for a magnitude alone.
        scaling: s.
        magnitude: m [E, O], fp32 or better, with `scaled`, its `Scale`; both None for LoRA.
        p: the probability of dropout d; 0 for none.
        as_torch: whether d draws as torch's own dropout does.

    Raises:
        MmdoraError: under a transform of `torch.func`, which cannot see which rows an expert has.
    """
    factor, inverse_norm, keep = scaled if scaled is not None else (None, None, False)
    if transforms.active():
        raise MmdoraError("adapted experts do not run under a transform of torch.func; use autograd itself")
    adapter = lora_A, lora_B, magnitude, factor, inverse_norm
    return _AdaptedExperts.apply(x, weight, *adapter, routed, scaling, p, as_torch, keep)


class _AdaptedExperts(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        lora_A: Tensor | None,
        lora_B: Tensor | None,
        magnitude: Tensor | None,
        factor: Tensor | None,
        inverse_norm: Tensor | None,
        routed: Segments,
        scaling: float,
        p: float,
        as_torch: bool,
        keep: bool,
    ) -> Tensor:
        y = x.new_zeros(x.shape[0], weight.shape[1])
        tensors: list[Tensor | None] = []
        ctx.scalings = []
        for expert, rows in routed:
            a, b, c = _of(expert, lora_A, lora_B, factor)
            part, kept = passes.forward(
                x[rows], weight[expert], None, a, b, c, scaling, p, as_torch=as_torch, keep=keep
            )
            y[rows] = part
            # Without dropout the branch is x, which is saved once for all experts; so is y, unless z is kept.
            tensors += [kept.branch if p and a is not None else None, kept.mask, kept.hidden, kept.z]
            ctx.scalings.append(kept.scaling)
        whole_x = x if lora_A is not None and not p else None
        whole_y = y if magnitude is not None and not keep else None
        ctx.save_for_backward(whole_x, whole_y, weight, lora_A, lora_B, magnitude, factor, inverse_norm, *tensors)
        ctx.routed, ctx.p, ctx.keep = routed, p, keep
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        if transforms.differentiated():
            raise MmdoraError("a second backward through adapted experts, which they do not have")
        x, y, weight, lora_A, lora_B, magnitude, factor, inverse_norm, *tensors = ctx.saved_tensors
        (g,) = grads
        wants = ctx.needs_input_grad[0], *ctx.needs_input_grad[2:4]
        dx = g.new_zeros(g.shape[0], weight.shape[2]) if wants[0] else None
        sums = [None if own is None else torch.zeros_like(own) for own in (lora_A, lora_B, magnitude)]
        for index, (expert, rows) in enumerate(ctx.routed):
            branch, mask, hidden, z = tensors[4 * index : 4 * index + 4]
            kept = passes.Kept(
                x[rows] if x is not None else branch,
                mask,
                hidden,
                z if y is None else y[rows],
                ctx.scalings[index],
            )
            a, b, c, n = _of(expert, lora_A, lora_B, factor, inverse_norm)
            matrix = weight[expert], None, a, b, c, n
            d_rows, *found = passes.backward(g[rows], *matrix, kept, ctx.p, wants, of_y=not ctx.keep)
            if dx is not None and d_rows is not None:
                dx[rows] = d_rows
            for total, gradient in zip(sums, found, strict=True):
                if total is not None and gradient is not None:
                    total[expert] = gradient
        return dx, None, *sums, None, None, None, None, None, None, None


def _of(expert: int, *tensors: Tensor | None) -> list[Tensor | None]:
    return [None if tensor is None else tensor[expert] for tensor in tensors]
