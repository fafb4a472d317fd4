"""Scores how well a model recognises that a question of VizWiz cannot be answered, beside soft accuracy."""

from __future__ import annotations

from collections.abc import Sequence

from mmdora.evaluate.scoring.bootstrap import Array, Part
from mmdora.evaluate.scoring.confusion import accuracy, average_precision, confusion, f1
from mmdora.evaluate.scoring.parts import Kinds, PartScores, means
from mmdora.evaluate.scoring.rows import Prediction

UNANSWERABLE = "unanswerable"
"""The answer for questions that cannot be answered: LLaVA's prompt asks for this word, and the annotators wrote it."""


def sum_up(rows: Sequence[Prediction], each: Array, kinds: Kinds) -> PartScores:
    """Soft accuracy, and average precision, F1 and accuracy of the class "unanswerable".

    Average precision and F1 are computed as in VizWiz's evaluate_unanswerability, which takes a confidence. Here the
    confidence is 1 if the generated text is "unanswerable", and 0 otherwise.
    """
    parts = means(rows, each, kinds)
    if any("answerable" not in row["meta"] for row in rows):
        parts.left_out[UNANSWERABLE] = "no meta.answerable"
        return parts
    predicted = (row["prediction"] == UNANSWERABLE for row in rows)
    columns = confusion(predicted, (not row["meta"]["answerable"] for row in rows))
    for name, number in (("average precision", average_precision), ("F1", f1), ("accuracy", accuracy)):
        parts.details[f"{UNANSWERABLE} {name}"] = Part(columns, number, len(rows))
    return parts
