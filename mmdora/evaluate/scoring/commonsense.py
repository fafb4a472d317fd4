"""Scores the commonsense tasks as the DoRA paper does: by the first label of the task that a generated text holds.

It follows `extract_answer` of LLM-Adapters (https://github.com/AGI-Edgerunners/LLM-Adapters, commonsense_evaluate.py),
which NVlabs/DoRA uses as it is: upper and lower case differ, and a text without a label is wrong.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from mmdora.evaluate.scoring.bootstrap import Array
from mmdora.evaluate.scoring.parts import Kinds, PartScores, means
from mmdora.evaluate.scoring.rows import Prediction, need

COUNTS = {"solution": 2, "answer": 5, "ending": 4, "option": 2}
"""Word of a label -> how many labels with this word the published scorer looks for."""
UNPARSABLE = "unparsable"


def label(row: Prediction) -> str:
    """The first label in the text before any further "### Response:"; empty if there is none."""
    word = re.sub(r"\d", "", need(row, "answer"))
    labels = [f"{word}{number}" for number in range(1, COUNTS[word] + 1)] if word in COUNTS else ["true", "false"]
    found = re.search("|".join(labels), row["prediction"].split("### Response:")[0])
    return found[0] if found else ""


def right(row: Prediction) -> bool:
    return row["prediction"] == need(row, "answer")


def sum_up(rows: Sequence[Prediction], each: Array, kinds: Kinds) -> PartScores:
    parts = means(rows, each, kinds)
    parts.counts[UNPARSABLE] = sum(not row["prediction"] for row in rows)
    return parts
