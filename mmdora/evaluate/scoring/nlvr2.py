"""Scores NLVR2 (Suhr et al. 2019) as its metrics.py does: accuracy, and consistency over the pairs of a sentence."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np

from mmdora.errors import MmdoraError
from mmdora.evaluate.scoring.bootstrap import Array
from mmdora.evaluate.scoring.parts import Kinds, PartScores, mean, means
from mmdora.evaluate.scoring.rows import Prediction, need

SAID = {"yes": "true", "no": "false"}


def submitted(text: str) -> str:
    """The text in lower case (metrics.py ignores case) without periods at the end; yes is true, and no is false."""
    text = text.strip().rstrip(".").lower()
    return SAID.get(text, text)


def right(row: Prediction) -> bool:
    return row["prediction"] == row["answer"].lower()


def sum_up(rows: Sequence[Prediction], each: Array, kinds: Kinds) -> PartScores:
    """Accuracy, and consistency: the share of sentences that are judged correctly for all of their image pairs."""
    sentences: dict[Hashable, list[int]] = {}
    for number, row in enumerate(rows):
        split, group, _, sentence = _identifier(row)
        sentences.setdefault((split, group, sentence), []).append(number)
    all_right, first = np.zeros(len(rows)), np.zeros(len(rows), bool)
    for numbers in sentences.values():
        all_right[numbers[0]], first[numbers[0]] = each[numbers].min(), True
    parts = means(rows, each, kinds)
    parts.details["consistency"] = mean(all_right, first)
    return parts


def picture_set(row: Prediction) -> Hashable:
    """The split and the set of a row; the sentences of a set are about the same pictures."""
    return tuple(_identifier(row)[:2])


def _identifier(row: Prediction) -> list[str]:
    names = need(row, "identifier").split("-")
    if len(names) != 4:
        raise MmdoraError(f"row {row['id']}: an NLVR2 identifier is split-set-pair-sentence, not {'-'.join(names)!r}")
    return names
