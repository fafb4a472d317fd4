"""Measures what training did to one weight matrix: the weight-decomposition analysis of arXiv 2402.09353, section 3.2.

A row W_j is taken apart into its magnitude m_j = ||W_j|| and its direction V_j = W_j / m_j. The change from the base's
weight W0 to a checkpoint's weight W' is measured by two means over the O rows:

    dM = mean_j |m'_j - m_j|        dD = mean_j (1 - cos(W'_j, W0_j))

The columns of the paper's W [d, k] are the rows of `nn.Linear.weight` [O, I] here; DoRA has one magnitude for each. All
is computed in float64, because after little training 1 - cos is as small as fp32's rounding.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from mmdora.ops.merge import pieces
from mmdora.ops.reference import adapted_weight


class Change(NamedTuple):
    """The distance by which one weight moved from W0 to W'."""

    delta_m: float
    """dM: the mean absolute change of a row's norm, in the unit of the weights."""
    delta_d: float
    """dD: the mean of 1 - cos over the rows, from 0 to 2; nan if no row has a direction both before and after."""
    base_norm: float
    """||W0||, the Frobenius norm of the weight before."""
    delta_norm: float
    """||W' - W0||, the Frobenius norm of the change."""


@torch.no_grad()
def changed_rows(
    weight: Tensor, lora_A: Tensor | None, lora_B: Tensor | None, magnitude: Tensor | None, scaling: float
) -> Iterator[Tensor]:
    """Yield W' [O, I] of an adapted matrix in consecutive pieces [rows, I], in float64.

    The arguments are those of `adapted_weight`.
    """
    lora_A = None if lora_A is None else lora_A.double()
    for start, stop in pieces(*weight.shape):
        b, m = (None if tensor is None else tensor[start:stop].double() for tensor in (lora_B, magnitude))
        yield adapted_weight(weight[start:stop].double(), lora_A, b, m, scaling)


@torch.no_grad()
def decompose(weight: Tensor, changed: Iterable[Tensor], delta: Tensor | None = None) -> Change:
    """Measure the change from `weight` to `changed`, a few rows at a time.

    Args:
        weight: W0 [O, I] of any float dtype, with O > 0; it may be memory-mapped.
        changed: W' as consecutive pieces [rows, I] of any float dtype.
        delta: tensor [O, I] that W' - W0 is written to; None if nobody needs it.
    """
    moved, turned, directed, base, squared, start = 0.0, 0.0, 0, 0.0, 0.0, 0
    for piece in changed:
        new, old = piece.double(), weight[start : start + len(piece)].double()
        new_norm, old_norm = (torch.linalg.vector_norm(rows, dim=1, keepdim=True) for rows in (new, old))
        moved += float((new_norm - old_norm).abs().sum())
        both = ((new_norm > 0) & (old_norm > 0)).squeeze(1)  # A row of zeros has no direction.
        # For unit vectors u and v, 1 - cos is |u - v|^2 / 2, which loses no digits to cancellation.
        turned += float((new[both] / new_norm[both] - old[both] / old_norm[both]).square().sum()) / 2
        directed += int(both.sum())
        base += float(old_norm.square().sum())
        difference = new - old
        squared += float(difference.square().sum())
        if delta is not None:
            delta[start : start + len(piece)] = difference
        start += len(piece)
    return Change(moved / start, turned / directed if directed else float("nan"), base**0.5, squared**0.5)


@torch.no_grad()
def singular_values(matrix: Tensor) -> Tensor:
    """Singular values of a matrix [O, I], float64.

    They are computed from the Gram matrix of the shorter side. In float64 that is as exact as an SVD in fp32, and it
    needs memory for the square of the shorter side only.
    """
    matrix = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    gram = torch.zeros(matrix.shape[0], matrix.shape[0], dtype=torch.float64)
    for start, stop in pieces(matrix.shape[1], matrix.shape[0]):
        part = matrix[:, start:stop].double()
        gram.addmm_(part, part.T)
    return torch.linalg.eigvalsh(gram).clamp(min=0).sqrt()


@torch.no_grad()
def singular_values_of_product(lora_B: Tensor, lora_A: Tensor) -> Tensor:
    """Singular values of B A for B [O, R] and A [R, I], float64, through two QR decompositions."""
    left, right = torch.linalg.qr(lora_B.double()).R, torch.linalg.qr(lora_A.double().T).R
    return torch.linalg.svdvals(left @ right.T)


def effective_rank(values: Tensor) -> float:
    """exp of the entropy of the singular values' shares in their sum (Roy and Vetterli 2007); 0 if all are zero."""
    total = values.sum()
    return float(torch.special.entr(values / total).sum().exp()) if total else 0.0


def stable_rank(values: Tensor) -> float:
    """Squared Frobenius norm over squared spectral norm; 0 if all singular values are zero."""
    largest = values.max()
    return float((values / largest).square().sum()) if largest else 0.0
