"""Numbers from counts of true and false positives and negatives.

`sums` is float [..., 4]: true positive, false positive, true negative, false negative.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from mmdora.evaluate.scoring.bootstrap import Array, ratio


def confusion(predicted: Iterable[bool], truth: Iterable[bool]) -> Array:
    """float [rows, 4] with a 1 in each row, in the column of what the prediction is."""
    p, t = np.array(list(predicted), bool), np.array(list(truth), bool)
    return np.stack([p & t, p & ~t, ~p & ~t, ~p & t], 1).astype(float)


def accuracy(sums: Array) -> Array:
    return ratio(sums[..., 0] + sums[..., 2], sums.sum(-1))


def precision(sums: Array) -> Array:
    """0 where nothing was predicted positive."""
    return ratio(sums[..., 0], sums[..., 0] + sums[..., 1], 0.0)


def recall(sums: Array) -> Array:
    """0 where nothing is positive."""
    return ratio(sums[..., 0], sums[..., 0] + sums[..., 3], 0.0)


def f1(sums: Array) -> Array:
    """0 where nothing is positive and nothing was predicted positive."""
    return ratio(2 * sums[..., 0], 2 * sums[..., 0] + sums[..., 1] + sums[..., 3], 0.0)


def positive_ratio(sums: Array) -> Array:
    """The share that was predicted positive."""
    return ratio(sums[..., 0] + sums[..., 1], sums.sum(-1))


def average_precision(sums: Array) -> Array:
    """Average precision of predictions that are 0 or 1; nan where nothing is positive.

    Such predictions have two thresholds. The higher one selects the predicted positives; the lower one selects all
    rows, where recall is 1 and precision is the share of positives.
    """
    share, recalled = ratio(sums[..., 0] + sums[..., 3], sums.sum(-1)), recall(sums)
    return np.where(share > 0, recalled * precision(sums) + (1 - recalled) * share, np.nan)
