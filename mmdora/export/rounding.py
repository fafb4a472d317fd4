"""Tells rounding from error, by comparing a written tensor with the trained one in float64."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from mmdora.ops.reference import adapted_weight, direction

COMPARED_AT_ONCE = 2**17
"""Elements of a tensor that are compared at once: some ten float64 arrays of them take 10 MB."""


@dataclass(frozen=True)
class Pair:
    """A written tensor and the trained one. If an adapter is merged, both are matrices [O, I]."""

    name: str
    written: Tensor
    weight: Tensor
    factors: tuple[Tensor | None, Tensor | None, Tensor | None] | None = None  # A, B, m
    scaling: float = 1.0


def _rows_at_a_time(rows: int, columns: int) -> Iterator[tuple[int, int]]:
    """Yield (first row, row after the last) of pieces of about `COMPARED_AT_ONCE` elements."""
    step = max(1, COMPARED_AT_ONCE // max(1, columns))
    for start in range(0, rows, step):
        yield start, min(start + step, rows)


def _ratio(error: float, size: float) -> float:
    return error / size if size else math.inf if error else 0.0


def larger(a: float, b: float) -> float:
    """The larger of two numbers; NaN if one of them is NaN."""
    return a if a != a or a >= b else b


def copied(pair: Pair, dtype: torch.dtype) -> tuple[float, float]:
    """Compare a tensor into which no adapter is merged.

    Returns:
        The largest error relative to the largest trained number; and a number that is 0 if every written number is the
        trained one rounded to `dtype`, and positive otherwise.
    """
    written, weight = (torch.atleast_1d(tensor) for tensor in (pair.written, pair.weight))
    wrong, error, largest = 0.0, 0.0, 0.0
    for start, stop in _rows_at_a_time(len(weight), weight[:1].numel()):
        got, want = written[start:stop], weight[start:stop]
        if want.is_floating_point():
            wrong += not torch.equal(got.double(), want.float().to(dtype).double())
        else:
            wrong += not torch.equal(got, want)
        if want.numel():
            error = larger(error, float((got.double() - want.double()).abs().max()))
            largest = larger(largest, float(want.double().abs().max()))
    return _ratio(error, largest), wrong


def merged(pair: Pair, dtype: torch.dtype) -> tuple[float, float]:
    """Compare a tensor into which an adapter is merged.

    Returns:
        The largest error relative to the largest trained number; and the largest error after half a step of `dtype` is
        taken off, relative to the largest terms of its row.
    """
    assert pair.factors is not None
    lora_A, lora_B, magnitude = pair.factors
    a = None if lora_A is None else lora_A.double()
    error, largest, beyond = 0.0, 0.0, 0.0
    for start, stop in _rows_at_a_time(*pair.weight.shape):
        b, m = (None if tensor is None else tensor[start:stop].double() for tensor in (lora_B, magnitude))
        weight = pair.weight[start:stop].double()
        want = adapted_weight(weight, a, b, m, pair.scaling)
        sums = direction(weight, a, b, pair.scaling).norm(dim=1)
        sizes = [None if factor is None else factor.abs() for factor in (a, b)]
        terms = direction(weight.abs(), sizes[0], sizes[1], abs(pair.scaling))
        factor = torch.where(sums > 0, want.norm(dim=1) / sums.where(sums > 0, 1), 1)
        off = (pair.written[start:stop].double() - want).abs()
        error, largest = larger(error, float(off.max())), larger(largest, float(want.abs().max()))
        more = (off - half_step(want, dtype)).clamp(min=0).amax(1)
        beyond = larger(beyond, float(torch.where(more == 0, 0, more / (factor * terms.amax(1))).max()))
    return _ratio(error, largest), beyond


def half_step(values: Tensor, dtype: torch.dtype) -> Tensor:
    """Half the distance between neighbouring numbers of `dtype` at `values`, which is the largest error of rounding."""
    info = torch.finfo(dtype)
    # `power` is the largest power of two that is at most |value|. frexp gives zero the exponent of 0.5, hence the mask.
    power = torch.exp2(torch.frexp(values).exponent.to(values.dtype) - 1).masked_fill(values == 0, 0)
    return power.clamp(min=info.smallest_normal).mul(info.eps / 2)
