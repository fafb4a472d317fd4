"""Tells rounding from error, by comparing a written tensor with the trained one in float64."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from mmdora.ops.reference import direction, row_factor

COMPARED_AT_ONCE = 2**19
"""Elements of a tensor that are compared at once: three float64 arrays of them take 12 MB, and stay in a cache. That is
128 rows of 4,096; with a quarter of them, a product of matrices takes half as long again for each row."""
EXPONENTS = {torch.float64: (torch.int64, 0x7FF << 52), torch.float32: (torch.int32, 0xFF << 23)}
"""Dtype -> an integer dtype of its size, and the bits of the exponent in it."""


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
    kept = weight.dtype == dtype or not weight.is_floating_point()
    if kept and written.dtype == weight.dtype and torch.equal(written, weight):
        return 0.0, 0.0
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
        # Each array is written over by the next, because a new one costs more time than the arithmetic. First this is
        # V = W0 + s B A, as in `reference.direction`.
        sums = pair.weight[start:stop].to(torch.float64, copy=True)
        if a is not None and b is not None:
            sums.addmm_(b, a, alpha=pair.scaling)
        tops = torch.maximum(sums.amax(1), -sums.amin(1))  # `aminmax` takes five times as long.
        factor = torch.ones_like(tops) if m is None else row_factor(sums, m)
        want = sums.mul_(factor[:, None])
        off = pair.written[start:stop].to(torch.float64, copy=True).sub_(want).abs_()
        error, largest = larger(error, float(off.max())), larger(largest, float((factor.abs() * tops).max()))
        more = off.sub_(_half_step_(want, dtype)).amax(1).clamp_(min=0)
        # The largest terms take another product. No row's are smaller than its largest sum, so only those rows are
        # looked at that may be worse than the worst so far.
        rows = ((more != 0) & ~(more <= beyond * factor.abs() * tops)).nonzero().squeeze(1)
        if len(rows):
            weight = pair.weight[start:stop][rows].double()
            terms = _largest_terms(weight, a, None if b is None else b[rows], pair.scaling)
            beyond = larger(beyond, float((more[rows] / (factor[rows].abs() * terms)).max()))
    return _ratio(error, largest), beyond


def _largest_terms(weight: Tensor, a: Tensor | None, b: Tensor | None, scaling: float) -> Tensor:
    """The largest |W0| + |s| |B| |A| of each row [O]."""
    sizes = [None if factor is None else factor.abs() for factor in (a, b)]
    return direction(weight.abs(), sizes[0], sizes[1], abs(scaling)).amax(1)


def half_step(values: Tensor, dtype: torch.dtype) -> Tensor:
    """Half the distance between neighbouring numbers of `dtype` at `values`, which is the largest error of rounding.

    Args:
        values: float64 or float32.
    """
    return _half_step_(values.detach().clone(), dtype)


def _half_step_(values: Tensor, dtype: torch.dtype) -> Tensor:
    """`half_step`, written over `values`."""
    info, (integer, exponent) = torch.finfo(dtype), EXPONENTS[values.dtype]
    # The bits of the exponent alone are the largest power of two that is at most |value|, or 0 for 0.
    power = values.view(integer).bitwise_and_(exponent).view(values.dtype)
    return power.clamp_(min=info.smallest_normal).mul_(info.eps / 2)
