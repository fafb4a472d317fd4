"""Scores options by their likelihood: the most likely one is the answer, by its sum or by its sum per character.

A prediction is JSON, `[[log-probability, characters], …]` in the order of the options. lm-evaluation-harness calls the
accuracy by the sum `acc`, and that by the sum per character `acc_norm`.
"""

from __future__ import annotations

import json
from collections.abc import Callable

from mmdora.errors import MmdoraError
from mmdora.evaluate.scoring import choice
from mmdora.evaluate.scoring.rows import Prediction

NO_YES = ("no", "yes")
"""The options of a record without `meta.choices`, such as BoolQ's."""


def by_sum(row: Prediction) -> str:
    """The answer that is most likely: a letter, or of a record without choices its text."""
    return _named(row, lambda value, characters: value)


def by_character(row: Prediction) -> str:
    """The answer that is most likely per character."""
    return _named(row, lambda value, characters: value / max(characters, 1))


def right(row: Prediction) -> bool:
    """Whether the answer named by `by_sum` or `by_character` is right."""
    wanted = choice.answer(row) if row["meta"].get("choices") else row["answer"].strip().lower()
    return row["prediction"] == wanted


def _named(row: Prediction, of: Callable[[float, int], float]) -> str:
    names = choice.LETTERS[: len(row["meta"]["choices"])] if row["meta"].get("choices") else NO_YES
    try:
        values = [of(float(value), int(characters)) for value, characters in json.loads(row["prediction"])]
    except (ValueError, TypeError):
        values = []
    if len(values) != len(names):
        raise MmdoraError(f"row {row['id']}: the prediction {row['prediction']!r:.60} is no likelihood of each option")
    return names[max(range(len(values)), key=values.__getitem__)]
