"""Tests whether two models differ on one task by more than chance, on the same rows. This module imports no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mmdora.errors import MmdoraError
from mmdora.evaluate.scoring.bootstrap import resample
from mmdora.evaluate.scoring.parts import quotient
from mmdora.evaluate.scoring.rows import Prediction
from mmdora.evaluate.scoring.scorers import sum_up

MCNEMAR, BOOTSTRAP = "McNemar, exact", "paired bootstrap"


@dataclass(frozen=True)
class Comparison:
    """The second model's number minus the first model's, its 95% interval, and the two-sided p-value of `test`."""

    difference: float
    interval: tuple[float, float]
    p: float
    test: str


def compare(task: str, first: Sequence[Prediction], second: Sequence[Prediction], *, seed: int = 0) -> Comparison:
    """Compare two models' predictions on the same rows.

    The interval comes from resampling units (images), with the rows of both models together. If the number is a mean of
    zeros and ones, p is that of McNemar's exact test, which assumes that questions are independent. For any other
    number p is the share of resamples whose difference is at least as far from the observed difference as that is from
    0 (Efron and Tibshirani 1993, ch. 16).

    Raises:
        MmdoraError: if the ids of the two models' rows differ, or their order does.
    """
    if [row["id"] for row in first] != [row["id"] for row in second]:
        raise MmdoraError("two models are compared on the same rows; these differ in their ids or order")
    (_, ours, units), (_, theirs, _) = sum_up(task, first), sum_up(task, second)
    one, two, width = ours.overall, theirs.overall, ours.overall.columns.shape[1]
    columns = np.concatenate([one.columns, two.columns], 1)
    seen = float(two.estimate(two.columns.sum(0)) - one.estimate(one.columns.sum(0)))
    drawn = resample(columns, units, seed=seed)
    differences = two.estimate(drawn[:, width:]) - one.estimate(drawn[:, :width])
    low, high = np.nanpercentile(differences, [2.5, 97.5])
    if one.estimate is quotient and np.isin(columns, (0, 1)).all():
        # A row that does not count is wrong for both models, so McNemar's test ignores it.
        right, right_too = ((part.columns[:, 0] == 1).tolist() for part in (one, two))
        p, test = mcnemar(right, right_too).p, MCNEMAR
    else:
        far = np.count_nonzero(np.abs(differences - seen) >= abs(seen) - 1e-12)
        p, test = float(far + 1) / (len(differences) + 1), BOOTSTRAP
    return Comparison(seen, (float(low), float(high)), p, test)


@dataclass(frozen=True)
class Paired:
    """The numbers of questions that only the first or only the second model got right, and McNemar's p."""

    only_first: int
    only_second: int
    p: float


def mcnemar(first: Sequence[bool], second: Sequence[bool]) -> Paired:
    """McNemar's exact two-sided test (McNemar 1947) on which questions each of two models got right."""
    pairs = list(zip(first, second, strict=True))
    only_first = sum(bool(a and not b) for a, b in pairs)
    only_second = sum(bool(b and not a) for a, b in pairs)
    n = only_first + only_second
    term, tail = 1, 1  # Both are exact integers; `tail` becomes the sum of C(n, i) for i up to the smaller count.
    for i in range(min(only_first, only_second)):
        term = term * (n - i) // (i + 1)
        tail += term
    return Paired(only_first, only_second, min(1.0, 2 * tail / 2**n))
