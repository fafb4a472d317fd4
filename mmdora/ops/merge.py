"""W' of a whole matrix, a few rows at a time, so that a merge in fp32 needs little memory beside the weight."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from mmdora.ops.linear import scale
from mmdora.ops.products import wide

ELEMENTS = 1 << 20
"""Of one piece: 4 MB in fp32, small enough for a cache."""

STEP = 192
"""Pieces start at multiples of this, and none is shorter if the matrix is not: a product of one or a few rows takes
another way through BLAS and may differ in the last bit from the same rows of the whole product."""


def merged_rows(
    weight: Tensor, lora_A: Tensor | None, lora_B: Tensor | None, magnitude: Tensor | None, scaling: float
) -> Iterator[Tensor]:
    """W' [O, I] as consecutive pieces [rows, I]: `reference.adapted_weight` to the bit, in less time.

    Args:
        weight: W0 [O, I], any float dtype; the pieces are in fp32 or better.
        lora_A: [R, I], or None for a magnitude alone.
        lora_B: [O, R].
        magnitude: m [O], or None for LoRA.
        scaling: s.
    """
    dtype = wide(weight.dtype)
    lora_A = None if lora_A is None else lora_A.to(dtype)
    for start, stop in pieces(*weight.shape):
        b, m = (None if tensor is None else tensor[start:stop].to(dtype) for tensor in (lora_B, magnitude))
        yield _merged(weight[start:stop].to(dtype, copy=True), lora_A, b, m, scaling)


@torch.no_grad()
def _merged(
    dense: Tensor, lora_A: Tensor | None, lora_B: Tensor | None, magnitude: Tensor | None, scaling: float
) -> Tensor:
    if lora_A is not None and lora_B is not None:
        dense.add_((lora_B @ lora_A).mul_(scaling))
    if magnitude is not None:
        factor = scale(magnitude, torch.linalg.vector_norm(dense, dim=1), keep=True).factor
        dense.mul_(factor[:, None])
    return dense


def pieces(rows: int, columns: int) -> Iterator[tuple[int, int]]:
    """First and last row (exclusive) of pieces of about `ELEMENTS` elements."""
    step = max(1, ELEMENTS // max(1, columns) // STEP) * STEP
    last = max(0, rows // step - 1) * step
    for start in range(0, last, step):
        yield start, start + step
    yield last, rows
