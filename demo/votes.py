"""Counts the votes of blind comparisons, and appends them to the operator's file."""

from __future__ import annotations

import json
import math
import os
import secrets
import sys
import threading
import weakref
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from mmdora.demo.turns import UNDONE, Turn
from mmdora.errors import MmdoraError
from mmdora.evaluate.scoring.scores import Score
from mmdora.files import full_disk
from mmdora.outputs.lock import locked_file

BEGINS = b'{"time": "'
"""How every line begins."""
Z = 1.959964  # The 97.5% quantile of the normal distribution, for a 95% interval.


class Votes:
    """The votes since the page was started, and those that its file already holds about the same models.

    Args:
        names: names of the columns.
        file: JSON Lines file that each vote is appended to, with time, models from left to right, vote, a random id,
            question, settings, answers and the pictures' SHA-256, but nothing about who voted; and a line for each vote
            that is taken back. None keeps votes in memory only.

    Raises:
        MmdoraError: if the file cannot be written, holds anything but votes, or another page writes to it.
    """

    def __init__(self, names: Sequence[str], file: Path | None = None):
        self.names, self.file, self.counts, self._lock = tuple(names), file, Counter[str](), threading.Lock()
        self._held = ExitStack()
        self.close = weakref.finalize(self, self._held.close)
        """Let other pages write to the file; the end of the process does so too."""
        if file is not None:
            try:
                file.parent.mkdir(parents=True, exist_ok=True)
                file.open("a").close()
            except OSError as error:
                raise MmdoraError(f"--votes {file}: cannot be written ({error.strerror})") from None
            self._held.enter_context(locked_file(file))
            rows = [row for row in _earlier(file) if set(row["models"]) == set(names)]
            undone = {row["undoes"] for row in rows if row["vote"] == UNDONE}
            self.counts.update(row["vote"] for row in rows if row["vote"] != UNDONE and row.get("id") not in undone)

    def add(self, turn: Turn, pictures: Sequence[str]) -> str:
        """Count the vote of a turn, and give it a name, by which `take_back` knows it.

        Args:
            turn: the turn with its vote.
            pictures: SHA-256 of each picture's file.

        Raises:
            MmdoraError: if the vote cannot be written; it then does not count.
        """
        assert turn.vote is not None
        answers = {answer.name: answer.text for answer in turn.answers}
        name = secrets.token_hex(8)
        row = {"vote": turn.vote, "id": name, "question": turn.question, "settings": asdict(turn.settings)}
        with self._lock:
            self._write(turn, row | {"answers": answers, "pictures": list(pictures)}, "The vote was not counted")
            self.counts[turn.vote] += 1
        return name

    def take_back(self, turn: Turn, name: str) -> None:
        """Count the vote of a turn no more. The file keeps it, and gets a line that says so.

        Raises:
            MmdoraError: if that line cannot be written; the vote then still counts.
        """
        assert turn.vote is not None
        with self._lock:
            self._write(turn, {"vote": UNDONE, "undoes": name}, "The vote still counts")
            self.counts[turn.vote] -= 1

    def _write(self, turn: Turn, row: dict[str, Any], otherwise: str) -> None:
        models = [turn.answers[index].name for index in turn.order]
        row = {"time": datetime.now(UTC).isoformat(timespec="seconds"), "models": models, **row}
        if self.file is not None:
            try:
                _append(self.file, (json.dumps(row, ensure_ascii=False) + "\n").encode())
            except OSError as error:
                raise MmdoraError(f"{otherwise}: it cannot be written ({error.strerror}).") from None

    def tally(self) -> dict[str, Score]:
        """Each model's share of the votes that chose a model (no ties); empty before the first one."""
        decided = sum(self.counts[name] for name in self.names)
        return {name: share(self.counts[name], decided) for name in self.names} if decided else {}


def _earlier(file: Path) -> list[dict[str, Any]]:
    """The votes in a file. A last line that a kill or a full disk has cut short is taken out, and told.

    Raises:
        MmdoraError: the file holds anything else.
    """
    content = file.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    torn = content[len(whole) :]
    try:
        rows = [json.loads(line) for line in whole.splitlines()]
        for row in rows:
            if not (isinstance(row["vote"], str) and isinstance(row["models"], list)):
                raise TypeError
            if row["vote"] == UNDONE and not isinstance(row["undoes"], str):
                raise TypeError
        if torn and not (torn.startswith(BEGINS) or (whole and BEGINS.startswith(torn))):
            raise ValueError
    except (ValueError, KeyError, TypeError):
        raise MmdoraError(f"--votes {file}: is no file of votes; name another") from None
    if torn:
        aside = file.with_name(f"{file.name}.torn")
        with aside.open("ab") as cut:
            cut.write(torn + b"\n")
        os.truncate(file, len(whole))
        print(
            f"--votes {file}: the last line was cut short ({len(torn):,} bytes, when a disk was full or a page was "
            f"killed); it is in {aside} now, and does not count",
            file=sys.stderr,
        )
    return rows


def _append(file: Path, line: bytes) -> None:
    """Append a line whole, or nothing of it: a part of it would be taken back."""
    with full_disk(file, len(line)), file.open("ab", buffering=0) as lines:
        size = lines.seek(0, os.SEEK_END)
        try:
            written = 0
            while written < len(line):
                written += lines.write(line[written:])
        except OSError:
            lines.truncate(size)
            raise


def share(wins: int, n: int) -> Score:
    """A share with its 95% interval (Wilson 1927)."""
    p, z2 = wins / n, Z * Z
    middle = (p + z2 / (2 * n)) / (1 + z2 / n)
    half = Z / (1 + z2 / n) * math.sqrt(p * (1 - p) / n + z2 / (4 * n * n))
    return Score(p, n, (max(0.0, middle - half), min(1.0, middle + half)))
