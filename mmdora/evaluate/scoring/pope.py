"""Scores POPE (Li et al. 2023): whether a model sees objects that are not there. Yes is the positive class."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mmdora.errors import MmdoraError
from mmdora.evaluate.scoring.bootstrap import Array, Part
from mmdora.evaluate.scoring.confusion import accuracy, confusion, f1, positive_ratio, precision, recall
from mmdora.evaluate.scoring.parts import Kinds, PartScores
from mmdora.evaluate.scoring.rows import Prediction, need

NUMBERS = {"accuracy": accuracy, "precision": precision, "recall": recall, "F1": f1, "yes ratio": positive_ratio}


def says_yes(text: str) -> bool:
    """Whether an answer says yes, as evaluate.py reads it: unless its first sentence has the word no, No or not."""
    words = text.split(".")[0].replace(",", "").split(" ")
    return not {"No", "not", "no"} & set(words)


def right(row: Prediction) -> bool:
    return says_yes(row["prediction"]) == _label(row)


def _label(row: Prediction) -> bool:
    if row["answer"] not in ("yes", "no"):
        raise MmdoraError(f"row {row['id']}: a POPE label is yes or no, not {row['answer']!r}")
    return row["answer"] == "yes"


def sum_up(rows: Sequence[Prediction], each: Array, kinds: Kinds) -> PartScores:
    """The mean F1 of the three splits, which papers print as POPE, and all five numbers of each split.

    A number is 0 where the official scorer would divide by 0.
    """
    columns = confusion((says_yes(row["prediction"]) for row in rows), map(_label, rows))
    split = np.array([need(row, "type") for row in rows])  # `type` is the split: random, popular or adversarial.
    splits = {str(name): columns * (split == name)[:, None] for name in np.unique(split)}

    def mean_f1(sums: Array) -> Array:
        return f1(sums.reshape(*sums.shape[:-1], len(splits), 4)).mean(-1)

    return PartScores(
        Part(np.concatenate(list(splits.values()), 1), mean_f1, len(rows)),
        {name: Part(own, f1, int(own.sum())) for name, own in splits.items()},
        {
            f"{name} {number}": Part(own, estimate, int(own.sum()))
            for name, own in splits.items()
            for number, estimate in NUMBERS.items()
        },
    )
