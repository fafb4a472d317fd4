"""Dropout on the input of the low-rank branch. This file alone knows how a device draws it.

Drawing one number per element, as torch does, takes a CPU half as long as the product that follows. The elements that
become zero lie a geometric number of elements apart, so here a CPU draws one number per zero: the same distribution
for every p, from torch's generator, in a tenth of the time at p = 0.05. Other devices draw with torch's own dropout.
In the model of `benchmarks/step.py --quick` (hidden 1024, rank 16, 768 tokens, p = 0.05) a training step takes 1.15
times as much CPU time with torch's dropout in its place (DoRA), or 1.08 times (LoRA).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from mmdora.ops import operators


class Dropped(NamedTuple):
    """An input x with some of its elements set to zero: d(x) = values / share."""

    values: Tensor
    """Shape and dtype of x."""
    mask: Tensor
    """What was drawn: the indices of the zeros (int64), or for each element whether or by how much it is kept."""
    share: float
    """1 - p where `values` are the elements of x themselves, 1 where they are scaled already."""


def drop(x: Tensor, p: float, *, as_torch: bool = False) -> Dropped:
    """Set each element to zero with probability p in (0, 1).

    Args:
        x: [T, I].
        p: the probability.
        as_torch: whether to draw the very elements that `torch.nn.functional.dropout` draws.
    """
    if x.device.type != "cpu":
        return Dropped(*torch.native_dropout(x, p, True), share=1.0)
    # A compiler would have to break its graph at the number of the zeros.
    if as_torch or torch.compiler.is_compiling():
        noise = torch.nn.functional.dropout(torch.ones_like(x), p)
        return Dropped(x * noise, noise, share=1.0)
    indices = draw_zeros(x.numel(), p)
    return Dropped(x.reshape(-1).index_fill(0, indices, 0).view_as(x), indices, share=1 - p)


def gradient(of_values: Tensor, mask: Tensor, p: float) -> Tensor:
    """The gradient of x, given that of `Dropped.values`, which may be overwritten."""
    if mask.dtype == torch.int64:
        of_values.view(-1).index_fill_(0, mask, 0)
        return of_values
    if mask.dtype == torch.bool:
        return torch.ops.aten.native_dropout_backward(of_values, mask, 1 / (1 - p))
    return of_values.mul_(mask)


def zeros(count: int, p: float) -> Tensor:
    """Indices among `count` elements, each drawn with probability p in (0, 1): ascending, int64, on the CPU.

    The gap from one to the next is geometric: 1 + floor(log(u) / log(1 - p)) for u uniform in (0, 1].
    """
    # Eight standard deviations over the expected number suffice in all but one of 10^15 draws.
    size = int(count * p + 8 * math.sqrt(count * p)) + 8
    gaps = torch.rand(size).neg_().log1p_().div_(math.log1p(-p))
    indices = gaps.to(torch.int64).add_(1).cumsum_(0).sub_(1)
    if (last := int(indices[-1])) < count - 1:
        indices = torch.cat([indices, zeros(count - 1 - last, p).add_(last + 1)])
    return indices[: int(torch.searchsorted(indices, count))]


draw_zeros = operators.register("dropout_zeros(SymInt count, float p) -> Tensor", zeros)
"""`zeros` as one operation. Their number is random; the ledger of memory puts its expectation there instead."""
