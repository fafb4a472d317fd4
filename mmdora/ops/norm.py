"""Computes the row norms of W0 + s B A; without the dense product where W0 lies there as it is.

    ||V_j||^2 = ||W0_j||^2 + 2 s ((W0 A^T) * B).sum(1)_j + s^2 ((B A A^T) * B).sum(1)_j

This needs O(O R + R^2) memory. Where V is much shorter than W0 the sum cancels, and those rows are recomputed densely.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from mmdora.ops import backend
from mmdora.ops.products import UPCAST_ROWS, wide

CANCELLED_SHARE = 0.1
"""Rows whose ||V||^2 is under this share of ||W0||^2 are recomputed densely. At 0.1 the sum loses one decimal digit,
and n keeps a relative error of 1e-6 in fp32."""


def squared_norm(weight: Tensor) -> Tensor:
    """||W0_j||^2 [O], accumulated in fp32 or better. A constant of the base: compute it once.

    Args:
        weight: W0 [O, I], or one for each of E experts [E, O, I], which gives [E, O].
    """
    if weight.dim() == 3:
        return torch.stack([squared_norm(matrix) for matrix in weight])
    dtype = wide(weight.dtype)
    return torch.cat(
        [torch.linalg.vector_norm(part, dim=1, dtype=dtype) for part in weight.split(UPCAST_ROWS)]
    ).square()


def row_norm(
    weight: Tensor, lora_A: Tensor, lora_B: Tensor, scaling: float, base: Tensor, *, exact: bool = True
) -> Tensor:
    """n_j = ||W0_j + s (B A)_j|| [O], fp32 or better, outside autograd.

    Args:
        weight: W0 [O, I], any float dtype. Or one for each of E experts [E, O, I]; then all that follows, and the
            result, begin with E too, and one expert is computed after the other.
        lora_A: [R, I], fp32 or better.
        lora_B: [O, R], same dtype as A.
        scaling: s.
        base: `squared_norm(weight)`.
        exact: whether to recompute cancelled rows densely. Plain torch has to look at the values for that, which a
            compiled graph cannot. The kernel on CUDA decides on the device, and always does it.
    """
    with torch.no_grad(), torch.autocast(weight.device.type, enabled=False):
        if weight.dim() == 3:
            experts = zip(weight, lora_A, lora_B, base, strict=True)
            return torch.stack([row_norm(w, a, b, scaling, n2, exact=exact) for w, a, b, n2 in experts])
        if backend.on_triton(weight) and backend.on_triton(lora_A):
            from mmdora.ops import kernels

            return kernels.row_norm(weight, lora_A, lora_B, scaling, base, CANCELLED_SHARE)
        dtype = lora_A.dtype
        projected = torch.cat([part.to(dtype) @ lora_A.T for part in weight.split(UPCAST_ROWS)])
        mixed = projected.mul_(2 * scaling).addmm_(lora_B, lora_A @ lora_A.T, alpha=scaling**2)
        squared = (mixed.mul_(lora_B).sum(1) + base).clamp_(min=0)
        if exact:
            rows = (squared < CANCELLED_SHARE * base).nonzero().squeeze(1)
            for part in rows.split(UPCAST_ROWS) if rows.numel() else ():
                dense = weight[part].to(dtype).addmm(lora_B[part], lora_A, alpha=scaling)
                squared[part] = torch.linalg.vector_norm(dense, dim=1).square()
        return squared.sqrt_()


def norm_of_rows(pieces: Iterable[Tensor], lora_A: Tensor | None, lora_B: Tensor | None, scaling: float) -> Tensor:
    """||W0_j + s (B A)_j|| [O], fp32 or better, outside autograd, for a W0 of which some rows are there at a time.

    B A is formed for these rows: it takes as many multiplications as W0 A^T would, and nothing cancels.

    Args:
        pieces: W0 [O, I] as consecutive pieces [rows, I], any float dtype.
        lora_A: [R, I], or None for the norms of W0.
        lora_B: [O, R].
        scaling: s.
    """
    norms: list[Tensor] = []
    start = 0
    for part in pieces:
        with torch.no_grad(), torch.autocast(part.device.type, enabled=False):
            dense = part.to(wide(part.dtype) if lora_A is None else lora_A.dtype)
            if lora_A is not None and lora_B is not None:
                dense = dense.addmm(lora_B[start : start + len(part)], lora_A, alpha=scaling)
            norms.append(torch.linalg.vector_norm(dense, dim=1))
        start += len(part)
    return torch.cat(norms)
