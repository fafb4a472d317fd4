"""Scores where something is in a picture: a box is right if its IoU with the reference is at least 0.5.

As in Qwen-VL's evaluate_grounding.py, the first box of an answer counts, and an answer without one is wrong. Reference
and answer are in the same numbers, those of the model's family; what those are does not matter, because no scaling
along an axis changes an IoU.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mmdora.errors import MmdoraError
from mmdora.evaluate.scoring.bootstrap import Array
from mmdora.evaluate.scoring.choice import UNPARSABLE
from mmdora.evaluate.scoring.parts import Kinds, PartScores, mean, means
from mmdora.evaluate.scoring.rows import Prediction
from mmdora.records.boxes import Box, find_boxes, iou

ENOUGH = 0.5


def overlap(row: Prediction) -> float:
    """The IoU of the first box in the answer with the reference's; 0 without a box in the answer.

    Raises:
        MmdoraError: the reference has no box.
    """
    reference = find_boxes(row["answer"])
    if not reference:
        raise MmdoraError(
            f"row {row['id']}: its answer {row['answer'][:60]!r} has no box to be scored by; write "
            "<box>x1, y1, x2, y2</box> and say in meta.boxes_in what the numbers are"
        )
    box = _first(row)
    return 0.0 if box is None else iou(box, reference[0])


def right(row: Prediction) -> bool:
    return overlap(row) >= ENOUGH


def sum_up(rows: Sequence[Prediction], each: Array, kinds: Kinds) -> PartScores:
    """The share of right boxes, the mean IoU, and how many answers hold no box."""
    numbers = means(rows, each, kinds)
    overlaps = np.array([overlap(row) for row in rows])
    numbers.details["mean IoU"] = mean(overlaps)
    numbers.counts[UNPARSABLE] = sum(_first(row) is None for row in rows)
    return numbers


def _first(row: Prediction) -> Box | None:
    return next(iter(find_boxes(row["prediction"])), None)
