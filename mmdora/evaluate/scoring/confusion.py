"""Computes accuracy, precision, recall and the like from counts of true and false positives and negatives.

`sums` is float [..., 4] in all functions: true positives, false positives, true negatives, false negatives.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from mmdora.evaluate.scoring.bootstrap import Array, ratio


def confusion(predicted: Iterable[bool], truth: Iterable[bool]) -> Array:
    """float [rows, 4]: each row has a 1 in one of the columns of `sums`, and 0 in the others."""
    p, t = np.array(list(predicted), bool), np.array(list(truth), bool)
    return np.stack([p & t, p & ~t, ~p & ~t, ~p & t], 1).astype(float)


def accuracy(sums: Array) -> Array:
    return ratio(sums[..., 0] + sums[..., 2], sums.sum(-1))


def precision(sums: Array) -> Array:
    """The precision [...]; 0 where nothing was predicted positive."""
    return ratio(sums[..., 0], sums[..., 0] + sums[..., 1], 0.0)


def recall(sums: Array) -> Array:
    """The recall [...]; 0 where nothing is positive."""
    return ratio(sums[..., 0], sums[..., 0] + sums[..., 3], 0.0)


def f1(sums: Array) -> Array:
    """The F1 score [...]; 0 where nothing is positive and nothing was predicted positive."""
    return ratio(2 * sums[..., 0], 2 * sums[..., 0] + sums[..., 1] + sums[..., 3], 0.0)


def positive_ratio(sums: Array) -> Array:
    """The share [...] of rows that were predicted positive."""
    return ratio(sums[..., 0] + sums[..., 1], sums.sum(-1))


def average_precision(sums: Array) -> Array:
    """The average precision [...] of predictions that are 0 or 1; nan where nothing is positive.

    Such predictions have two thresholds. The higher one selects the predicted positives; the lower one selects all
    rows, where recall is 1 and precision is the share of positives.
    """
    share, recalled = ratio(sums[..., 0] + sums[..., 3], sums.sum(-1)), recall(sums)
    return np.where(share > 0, recalled * precision(sums) + (1 - recalled) * share, np.nan)
