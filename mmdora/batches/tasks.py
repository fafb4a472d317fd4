"""Joins the rows of several tasks into one training set, and draws the soft answers of VQA."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
from torch.utils.data import Dataset

from mmdora.batches.fit import Rows
from mmdora.errors import MmdoraError
from mmdora.records.row import Row, changed


class TaskRows(Dataset[Row]):
    """The rows of several tasks, one task after the other; each row names its `task`.

    Args:
        parts: name of a task -> its rows.
        soft: names of tasks in which the answer is drawn anew in each epoch (`soft_answer`); their rows get a `weight`.
    """

    def __init__(self, parts: Mapping[str, Rows], soft: Sequence[str] = (), seed: int = 0):
        self.by_name, self.names, self.parts = dict(parts), list(parts), list(parts.values())
        self.soft, self.seed, self.epoch = frozenset(soft), seed, 0
        self.tasks = np.repeat(np.arange(len(parts), dtype=np.int32), [len(rows) for rows in self.parts])
        self.starts = np.cumsum([0, *(len(rows) for rows in self.parts)])
        self.lengths = np.concatenate([rows.lengths for rows in self.parts])
        self.has_image = np.concatenate([rows.has_image for rows in self.parts])
        self.dropped = sum(rows.dropped for rows in self.parts)
        self.shrunk = sum(rows.shrunk for rows in self.parts)
        for name in self.soft:
            if not self.by_name[name][0]["meta"].get("answers"):
                raise MmdoraError(f"data.tasks.{name}.soft_answers: its records have no meta.answers to draw from")

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.tasks)

    def __getitem__(self, index: int) -> Row:
        """Return a row. The index ~i (negative) gives row i with all its labels masked, as in `Rows`."""
        place = index if index >= 0 else ~index
        number = int(self.tasks[place])
        name, rows, own = self.names[number], self.parts[number], int(place - self.starts[number])
        row = changed(rows[own if index >= 0 else ~own], task=name)
        return self._softened(row) if name in self.soft else row

    def _softened(self, row: Row) -> Row:
        answer, weight = soft_answer(row["meta"]["answers"], random.Random(f"{self.seed}:{self.epoch}:{row['id']}"))
        *before, last = row["messages"]
        messages = [*before, last | {"content": [{"type": "text", "text": answer}]}]
        return changed(row, messages=messages, weight=weight)


def soft_scores(answers: Sequence[str]) -> dict[str, float]:
    """Answer -> min(1, 0.3 n), where n people gave the answer: the scores of VL-T5 (Cho et al., ICML 2021)."""
    return {answer: min(1.0, 0.3 * count) for answer, count in Counter(answers).items()}


def soft_answer(answers: Sequence[str], rng: random.Random) -> tuple[str, float]:
    """Draw one of the answers with a probability in proportion to its score; returns the answer and its score."""
    scores = soft_scores(answers)
    (answer,) = rng.choices(list(scores), list(scores.values()))
    return answer, scores[answer]
