"""Computes intervals by the bootstrap (Efron 1979), for any number that is a function of sums over rows.

Whole groups of rows are drawn with replacement, because questions about one image are not independent. All resamples
together are one matrix product: how often each group was drawn [resamples, groups], times the sums of the groups
[groups, columns].
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from mmdora.evaluate.scoring.scores import Score

RESAMPLES = 2000
"""The number of resamples: enough for the percentiles 2.5 and 97.5 (Efron and Tibshirani 1993, ch. 13)."""
DRAWS_AT_ONCE = 2**22
"""The most draws of groups in memory at a time: 32 MB."""

Array = np.ndarray
Name = TypeVar("Name", bound=Hashable)


@dataclass(frozen=True)
class Part:
    """A number as a function of sums.

    Attributes:
        columns: float [rows, k], whose sums over the rows are given to `estimate`.
        estimate: function from sums [..., k] to the number [...], which is nan if a resample does not determine it.
        n: the number of rows to report, over which the number is computed.
    """

    columns: Array
    estimate: Callable[[Array], Array]
    n: int


def ratio(numerator: Array, denominator: Array, undefined: float = np.nan) -> Array:
    """The elementwise quotient, which is `undefined` where the denominator is 0."""
    numerator, denominator = np.broadcast_arrays(np.asarray(numerator, float), np.asarray(denominator, float))
    return np.divide(numerator, denominator, out=np.full(denominator.shape, undefined), where=denominator != 0)


def resample(columns: Array, groups: Sequence[Hashable], resamples: int = RESAMPLES, seed: int = 0) -> Array:
    """Sums [resamples, k] of the columns [rows, k], over groups of rows that are drawn with replacement."""
    names: dict[Hashable, int] = {}
    inverse = np.array([names.setdefault(group, len(names)) for group in groups])
    count = len(names)
    sums = np.stack([np.bincount(inverse, column, count) for column in columns.T], 1)
    random, drawn, chunk = np.random.default_rng(seed), [], max(1, DRAWS_AT_ONCE // count)
    for start in range(0, resamples, chunk):
        size = min(chunk, resamples - start)
        picks = random.integers(count, size=(size, count)) + count * np.arange(size)[:, None]
        drawn.append(np.bincount(picks.ravel(), minlength=size * count).reshape(size, count) @ sums)
    return np.concatenate(drawn)


def measure(parts: Mapping[Name, Part], groups: Sequence[Hashable], seed: int = 0) -> dict[Name, Score]:
    """Measure every part that the rows determine, with its percentile interval; all parts use the same resamples.

    Args:
        groups: [rows] name of each row's group; the rows of a group are drawn together.
    """
    values = {name: float(part.estimate(part.columns.sum(0))) for name, part in parts.items()}
    known = {name: parts[name] for name, value in values.items() if not np.isnan(value)}
    if not known:
        return {}
    drawn = resample(np.concatenate([part.columns for part in known.values()], 1), groups, seed=seed)
    ends = np.cumsum([part.columns.shape[1] for part in known.values()])[:-1]
    measured = {}
    for (name, part), sums in zip(known.items(), np.split(drawn, ends, axis=1), strict=True):
        low, high = np.nanpercentile(part.estimate(sums), [2.5, 97.5])
        measured[name] = Score(values[name], part.n, (float(low), float(high)))
    return measured
