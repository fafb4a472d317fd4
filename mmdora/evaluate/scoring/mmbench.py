"""Scores MMBench (Liu et al. 2023): plain accuracy, and CircularEval over the rotations of a question's options.

In the files of MMBench a rotated question is a row of its own, whose options and answer are rotated. Its index is the
index of the question plus a multiple of `ROTATION`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mmdora.errors import MmdoraError
from mmdora.evaluate.scoring.bootstrap import Array
from mmdora.evaluate.scoring.choice import UNPARSABLE, answer, match_option
from mmdora.evaluate.scoring.parts import Kinds, PartScores, mean, means
from mmdora.evaluate.scoring.rows import Prediction, need

ROTATION = 1_000_000  # Step between the indices of a question's rotations in MMBench's files.


def option(row: Prediction) -> str | None:
    """The letter of the option that the prediction names; None if it names none."""
    return match_option(row["prediction"], need(row, "choices"))


def right(row: Prediction) -> bool:
    return option(row) == answer(row)


def question(row: Prediction) -> int:
    """The index of the question that the row asks, rotated or not."""
    return int(need(row, "index")) % ROTATION


def plain(rows: Sequence[Prediction], each: Array, kinds: Kinds) -> PartScores:
    """Accuracy over the questions without rotation; rotated rows do not count."""
    main = _unrotated(rows)
    parts = means(rows, each, kinds, main)
    parts.counts[UNPARSABLE] = sum(option(row) is None for row, kept in zip(rows, main, strict=True) if kept)
    return parts


def circular(rows: Sequence[Prediction], each: Array, kinds: Kinds) -> PartScores:
    """CircularEval: a question counts as right if it is right in every rotation.

    Raises:
        MmdoraError: if a question does not have one row for each of its options, or none of these rows is unrotated.
    """
    rounds: dict[int, list[int]] = {}
    for number, row in enumerate(rows):
        rounds.setdefault(question(row), []).append(number)
    main, hits = _unrotated(rows), np.zeros(len(rows))
    for index, numbers in rounds.items():
        wanted = len(need(rows[numbers[0]], "choices"))
        if len(numbers) != wanted or main[numbers].sum() != 1:
            raise MmdoraError(
                f"MMBench question {index}: CircularEval needs it and its rotations, {wanted} rows; found "
                f"{len(numbers)} (a file without rotations is scored by mmbench-plain)"
            )
        hits[numbers] = each[numbers].min()
    parts = means(rows, hits, kinds, main)
    parts.details["plain"] = mean(each, main)
    parts.counts[UNPARSABLE] = sum(option(row) is None for row in rows)
    return parts


def _unrotated(rows: Sequence[Prediction]) -> Array:
    return np.array([int(row["meta"]["index"]) == question(row) for row in rows])
