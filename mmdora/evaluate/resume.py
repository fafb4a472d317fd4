"""Keeps answers on disk while an evaluation runs, so that a killed one can go on where it stopped. Without torch.

When a batch is answered, a line is appended. The numbers of batches depend only on the records and the batch size, so
the run that goes on has the same batches, on any number of processes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmdora.files import sha256, write_whole

JOURNAL = "partial-{}.jsonl"  # Each process writes one; its number is in the name.
PREDICTIONS, METRICS = "predictions.jsonl", "metrics.json"


def key_of(facts: Mapping[str, Any]) -> str:
    """A hash of everything that decides the answers: the same facts have the same key."""
    return sha256(json.dumps(facts, sort_keys=True).encode())


class Journal:
    """The answers of one process, in a file of its own below `out`; without `out` nothing is kept."""

    def __init__(self, out: Path | None, key: str, process: int):
        self.out, self.key, self.process, self._file = out, key, process, None

    def kept(self) -> dict[int, list[str]]:
        """Number of a batch -> its answers, from earlier runs with the same key, whichever process wrote them.

        Lines that were cut short by a kill, and files with another key, are ignored.
        """
        answers: dict[int, list[str]] = {}
        for path in sorted(self.out.glob(JOURNAL.format("*"))) if self.out else ():
            lines = _whole_lines(path)
            if lines and lines[0] == {"key": self.key}:
                answers |= {line["batch"]: line["answers"] for line in lines[1:]}
        return answers

    def begin(self) -> None:
        """Open this process's file, after removing lines of another key and a line that was cut short."""
        if self.out is None:
            return
        self.out.mkdir(parents=True, exist_ok=True)
        path = self.out / JOURNAL.format(self.process)
        lines = _whole_lines(path) if path.exists() else []
        if not lines or lines[0] != {"key": self.key}:
            lines = [{"key": self.key}]
        write_whole(path, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
        self._file = path.open("a", encoding="utf-8")

    def add(self, batch: int, answers: list[str]) -> None:
        if self._file:
            self._file.write(json.dumps({"batch": batch, "answers": answers}, ensure_ascii=False) + "\n")
            self._file.flush()  # Once the operating system has the line, it survives a kill of this process.

    def close(self) -> None:
        if self._file:
            self._file.close()
            self._file = None

    def remove(self) -> None:
        """Delete the journals of all processes, whose answers are in the final file by now."""
        for path in self.out.glob(JOURNAL.format("*")) if self.out else ():
            path.unlink()


def finished(out: Path | None, key: str) -> list[str] | None:
    """The predictions of a complete evaluation with the same key, in the order of the records, or None."""
    if out is None or not (out / METRICS).is_file() or not (out / PREDICTIONS).is_file():
        return None
    try:
        if json.loads((out / METRICS).read_text(encoding="utf-8")).get("key") != key:
            return None
        return [row["prediction"] for row in read_predictions(out)]
    except (ValueError, KeyError, AttributeError):  # Another program wrote these files.
        return None


def read_predictions(folder: Path | str) -> list[dict[str, Any]]:
    """The rows of `predictions.jsonl` in `folder`."""
    with (Path(folder) / PREDICTIONS).open(encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def _whole_lines(path: Path) -> list[Any]:
    lines = []
    for line in path.read_bytes().split(b"\n")[:-1]:  # After the last line end there is nothing, or a torn line.
        try:
            lines.append(json.loads(line))
        except ValueError:
            break
    return lines
