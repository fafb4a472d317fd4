"""Computes W' of a whole matrix some rows at a time, so that a merge in fp32 needs little memory beside the weight."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from mmdora.ops.linear import scale
from mmdora.ops.products import wide

PIECE_ELEMENTS = 1 << 20
"""Elements of one piece: 4 MiB in fp32, which fit into a cache."""

PIECE_ROWS = 192
"""The number of rows of a piece is a multiple of this, and no piece of a larger matrix has fewer: BLAS multiplies one
or a few rows by another routine, whose last bit may differ from that of the same rows in the whole product."""


def merged_rows(
    weight: Tensor, lora_A: Tensor | None, lora_B: Tensor | None, magnitude: Tensor | None, scaling: float
) -> Iterator[Tensor]:
    """W' [O, I] as consecutive pieces [rows, I]: the bits of `reference.adapted_weight`, in less time.

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
    """First and last row (exclusive) of pieces of about `PIECE_ELEMENTS` elements."""
    step = max(1, PIECE_ELEMENTS // max(1, columns) // PIECE_ROWS) * PIECE_ROWS
    last = max(0, rows // step - 1) * step
    for start in range(0, last, step):
        yield start, start + step
    yield last, rows
