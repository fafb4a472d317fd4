"""Keeps answers on disk while an evaluation runs, so that an evaluation that was killed can go on where it stopped.

After each batch a line is appended to a file. The batches depend only on the records and the batch size, so the
evaluation that goes on has the same batches, on any number of processes. Every line, there and in `predictions.jsonl`,
holds a SHA-256 of its answer, of its place and of everything that decides the answers (`key_of`), so an answer that was
edited, or moved to another question, is not used. This module imports no torch.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from mmdora.errors import MmdoraError
from mmdora.files import CHECKSUM, checksum_holds, digest_of, full_disk, write_whole

JOURNAL = "partial-{}.jsonl"  # Each process writes one; its number is in the name.
PREDICTIONS, METRICS = "predictions.jsonl", "metrics.json"


def key_of(facts: Mapping[str, Any]) -> str:
    """A hash of everything that decides the answers: the same facts have the same key."""
    return digest_of(facts)


class Journal:
    """Keeps the answers of one process in a file of its own below `out`; without `out` nothing is kept."""

    def __init__(self, out: Path | None, key: str, process: int):
        self.out, self.key, self.process, self._file = out, key, process, None

    def kept(self) -> dict[int, list[str]]:
        """Number of a batch -> its answers, from all processes of earlier runs with the same key.

        Lines that were cut short by a kill, and files with another key, are ignored. Lines that are not what was
        written are ignored too, and named on stderr.
        """
        answers: dict[int, list[str]] = {}
        for path in self._files():
            lines = _whole_lines(path)
            for number, line in enumerate(lines[1:] if lines and lines[0] == {"key": self.key} else (), 2):
                if self._is_written(line):
                    answers[line["batch"]] = line["answers"]
                elif self.process == 0:
                    print(f"warning: {path}:{number}: is not what was answered; asked again", file=sys.stderr)
        return answers

    def begin(self) -> None:
        """Open this process's file, after removing lines of another key and a line that was cut short.

        Raises:
            MmdoraError: the file is no journal.
        """
        if self.out is None:
            return
        self.out.mkdir(parents=True, exist_ok=True)
        path = self.out / JOURNAL.format(self.process)
        lines = _whole_lines(path) if path.exists() else []
        if lines and not (isinstance(lines[0], dict) and set(lines[0]) == {"key"}):
            raise MmdoraError(f"{path}: is there, and no evaluation wrote it; move it away, or give another --out")
        if not lines or lines[0] != {"key": self.key}:
            lines = [{"key": self.key}]
        lines = [lines[0], *filter(self._is_written, lines[1:])]
        write_whole(path, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
        self._file = path.open("a", encoding="utf-8")

    def add(self, batch: int, answers: list[str]) -> None:
        """Keep the answers of a batch.

        Raises:
            OSError: the disk is full, say.
        """
        if self._file:
            line = {"batch": batch, "answers": answers}
            with full_disk(Path(self._file.name)):
                self._file.write(json.dumps(line | {CHECKSUM: self._digest(line)}, ensure_ascii=False) + "\n")
                self._file.flush()  # Once the operating system has the line, it survives a kill of this process.

    def close(self) -> None:
        if self._file:
            file, self._file = self._file, None
            with full_disk(Path(file.name)):
                file.close()

    def remove(self) -> None:
        """Delete the journals of all processes, after their answers were written to the final file."""
        for path in self._files():
            path.unlink()

    def _files(self) -> list[Path]:
        return sorted(self.out.glob(JOURNAL.format("*"))) if self.out else []

    def _is_written(self, line: Any) -> bool:
        return isinstance(line, dict) and line.get(CHECKSUM) == self._digest(line)

    def _digest(self, line: Mapping[str, Any]) -> str:
        return digest_of({**line, "key": self.key})


def finished(out: Path | None, key: str, rows: int) -> list[str] | None:
    """The predictions of a complete evaluation with the same key, in the order of the records, or None.

    Raises:
        MmdoraError: a line is not what was answered there; the message names it.
    """
    if out is None or key_in(out) != key or not (out / PREDICTIONS).is_file():
        return None
    answers, number = [], 0
    for number, line in enumerate(_lines_of(out / PREDICTIONS), 1):
        if not isinstance(line, dict) or line.get(CHECKSUM) != line_digest(key, number, line):
            number -= 1
            break
        answers.append(line["prediction"])
    if number != rows:
        raise MmdoraError(
            f"{out / PREDICTIONS}:{number + 1}: is not the answer that was given there (lines were swapped, edited or "
            "lost); move the folder away to ask again, or give another --out"
        )
    return answers


def key_in(out: Path) -> str | None:
    """The key of the complete evaluation in a folder; None if there is none.

    Raises:
        MmdoraError: its numbers were edited.
    """
    try:
        values = json.loads((out / METRICS).read_text(encoding="utf-8"))
        key = values.get("key")
    except (OSError, ValueError, AttributeError):  # There is no such file, or another program wrote it.
        return None
    if not checksum_holds(values):
        raise MmdoraError(
            f"{out / METRICS}: was edited after it was written; move the folder away, or give another --out"
        )
    return key


def line_digest(key: str, number: int, row: Mapping[str, Any]) -> str:
    """What ties a line of `predictions.jsonl` to its question: `key` has all questions, `number` says which, from 1."""
    return digest_of({"key": key, "number": number, "id": row.get("id"), "prediction": row.get("prediction")})


def read_predictions(folder: Path | str) -> list[dict[str, Any]]:
    """The rows of `predictions.jsonl` in `folder`."""
    with (Path(folder) / PREDICTIONS).open(encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def _lines_of(path: Path) -> Iterator[Any]:
    """The values of the lines of a file; None for a line that is no JSON."""
    with path.open("rb") as file:
        for line in file:
            try:
                yield json.loads(line)
            except ValueError:
                yield None


def _whole_lines(path: Path) -> list[Any]:
    """The values of all lines but a last one that was cut short; None for a line that is no JSON."""
    lines: Iterable[bytes] = path.read_bytes().split(b"\n")[:-1]
    values = []
    for line in lines:
        try:
            values.append(json.loads(line))
        except ValueError:
            values.append(None)
    return values
