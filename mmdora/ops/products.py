"""Matrix products accumulated in fp32, with no fp32 copy of a half-precision weight."""

from __future__ import annotations

import torch
from torch import Tensor

UPCAST_ROWS = 1024
"""Rows of a half-precision weight that are upcast at a time where the device cannot multiply them as they are: 16 MiB
in fp32 at 4,096 columns, instead of a copy of the whole weight."""


def wide(dtype: torch.dtype) -> torch.dtype:
    """The dtype to accumulate in: fp32 for half precision, else the dtype itself."""
    return torch.promote_types(dtype, torch.float32)


def mm(a: Tensor, b: Tensor, dtype: torch.dtype) -> Tensor:
    """a [M, K] @ b [K, N] in `dtype`: that of both operands, or a wider one. Outside autograd."""
    if a.dtype == b.dtype == dtype:
        return a @ b
    if a.is_cuda and a.dtype == b.dtype and dtype == torch.float32:
        return torch.mm(a, b, out_dtype=dtype)
    return a.to(dtype) @ b.to(dtype)


def project(x: Tensor, weight: Tensor, dtype: torch.dtype) -> Tensor:
    """x [T, I] @ W0^T in `dtype`, for W0 [O, I] of any size. Outside autograd."""
    if x.is_cuda or weight.dtype == dtype:
        return mm(x, weight.T, dtype)
    x = x.to(dtype)
    parts = [x @ part.to(dtype).T for part in weight.split(UPCAST_ROWS)]
    return parts[0] if len(parts) == 1 else torch.cat(parts, 1)


def add_mm(total: Tensor, a: Tensor, b: Tensor, alpha: float = 1) -> Tensor:
    """total [M, N] + alpha a @ b, all of one dtype, into the memory of `total`; `overwrites` says when."""
    return total.addmm_(a, b, alpha=alpha) if overwrites() else torch.addmm(total, a, b, alpha=alpha)


def overwrites() -> bool:
    """Whether a forward may write its result into memory that it already has.

    Under `torch.compile` it may not: the compiler of torch 2.11 gives gradients of 0 if the result of an autograd
    function's forward is an older tensor, which was written into or which `Tensor.to` passed on. The compiler reuses
    memory by itself.
    """
    return not torch.compiler.is_compiling()


def cast(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """The tensor in `dtype`; unlike `Tensor.to` no operation if it has that dtype, for the reason in `overwrites`."""
    return tensor if tensor.dtype == dtype else tensor.to(dtype)
