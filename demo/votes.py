"""Counts the votes of blind comparisons, and appends them to the operator's file."""

from __future__ import annotations

import json
import math
import threading
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

from mmdora.demo.turns import Turn
from mmdora.errors import MmdoraError
from mmdora.evaluate.scoring.scores import Score

TIE, ALL_BAD = "tie", "all bad"
Z = 1.959964  # The 97.5% quantile of the normal distribution, for a 95% interval.


class Votes:
    """The votes since the page was started, and those that its file already holds about the same models.

    Args:
        names: names of the columns.
        file: JSON Lines file that each vote is appended to, with time, models from left to right, vote, question,
            settings, answers and the pictures' SHA-256, but nothing about who voted. None keeps votes in memory only.

    Raises:
        MmdoraError: if the file cannot be written, or holds anything but votes.
    """

    def __init__(self, names: Sequence[str], file: Path | None = None):
        self.names, self.file, self.counts, self._lock = tuple(names), file, Counter[str](), threading.Lock()
        if file is not None:
            try:
                file.parent.mkdir(parents=True, exist_ok=True)
                with file.open("a+", encoding="utf-8") as lines:
                    lines.seek(0)
                    earlier = [json.loads(line) for line in lines]
                self.counts.update(row["vote"] for row in earlier if set(row["models"]) == set(names))
            except OSError as error:
                raise MmdoraError(f"--votes {file}: cannot be written ({error.strerror})") from None
            except (ValueError, KeyError, TypeError):
                raise MmdoraError(f"--votes {file}: is no file of votes; name another") from None

    def add(self, turn: Turn, pictures: Sequence[str]) -> None:
        """Count the vote of a turn.

        Args:
            turn: the turn with its vote.
            pictures: SHA-256 of each picture's file.

        Raises:
            MmdoraError: if the vote cannot be written; it then does not count.
        """
        assert turn.vote is not None
        models = [turn.answers[index].name for index in turn.order]
        answers = {answer.name: answer.text for answer in turn.answers}
        row = {"time": datetime.now(UTC).isoformat(timespec="seconds"), "models": models, "vote": turn.vote}
        row |= {
            "question": turn.question,
            "settings": asdict(turn.settings),
            "answers": answers,
            "pictures": list(pictures),
        }
        with self._lock:
            if self.file is not None:
                try:
                    with self.file.open("a", encoding="utf-8") as lines:
                        lines.write(json.dumps(row, ensure_ascii=False) + "\n")
                except OSError as error:
                    raise MmdoraError(f"The vote was not counted: it cannot be written ({error.strerror}).") from None
            self.counts[turn.vote] += 1

    def tally(self) -> dict[str, Score]:
        """Each model's share of the votes that chose a model (no ties); empty before the first one."""
        decided = sum(self.counts[name] for name in self.names)
        return {name: share(self.counts[name], decided) for name in self.names} if decided else {}


def share(wins: int, n: int) -> Score:
    """A share with its 95% interval (Wilson 1927)."""
    p, z2 = wins / n, Z * Z
    middle = (p + z2 / (2 * n)) / (1 + z2 / n)
    half = Z / (1 + z2 / n) * math.sqrt(p * (1 - p) / n + z2 / (4 * n * n))
    return Score(p, n, (max(0.0, middle - half), min(1.0, middle + half)))
