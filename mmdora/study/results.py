"""The results of cells and the facts of tasks, a line of JSON each; this module imports no torch."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from mmdora.errors import MmdoraError
from mmdora.files import read_text, write_whole

RESULTS = "results.jsonl"
MOST_BYTES = 256 * 2**20
"""The most bytes of a file of results: a hundred thousand cells, at about 700 bytes each, take 70 MB."""


@dataclass
class Results:
    """What is known of a study.

    Attributes:
        cells: key of a cell -> its line.
        tasks: (base, task) -> its line: the scores of the base and of the question alone, and what data there was.
    """

    cells: dict[str, dict[str, Any]] = field(default_factory=dict)
    tasks: dict[tuple[str, str], dict[str, Any]] = field(default_factory=dict)

    def add(self, line: dict[str, Any]) -> None:
        if line["kind"] == "cell":
            self.cells[line["key"]] = line
        else:
            self.tasks[line["base"], line["task"]] = line

    def write(self, path: Path) -> None:
        """Write all lines, sorted, so that the file does not depend on the order in which cells ended."""
        lines = [self.tasks[name] for name in sorted(self.tasks)]
        lines += sorted(
            self.cells.values(), key=lambda line: (line["base"], line["task"], json.dumps(line["adapt"]), line["key"])
        )
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), shared=True)


def read_results(paths: Iterable[Path]) -> Results:
    """The lines of all files together; a file that is not there holds none.

    Raises:
        MmdoraError: a line is none of a study; or cells of one task were made of different data, which cannot be
            compared.
    """
    results = Results()
    for path in paths:
        if not path.exists():
            continue
        for number, line in enumerate(read_text(path, "file of results", MOST_BYTES).splitlines(), 1):
            try:
                results.add(json.loads(line))
            except (ValueError, KeyError, TypeError):
                raise MmdoraError(f"{path}:{number}: no result of a study; `mmdora study` writes such files") from None
    data: dict[tuple[str, str], str] = {}
    for line in (*results.tasks.values(), *results.cells.values()):
        if data.setdefault((line["base"], line["task"]), line["data"]) != line["data"]:
            raise MmdoraError(
                f"{line['task']}: there are results of two versions of its data, which cannot be compared; take "
                "another --out and --results"
            )
    return results


def packed(each: Sequence[float]) -> str | list[float]:
    """Scores of questions for a line: zeros and ones as "COUNT:HEXADECIMAL", other numbers as they are."""
    if not all(score in (0, 1) for score in each):
        return [round(score, 4) for score in each]
    return f"{len(each)}:{np.packbits(np.array(each, bool)).tobytes().hex()}"


def unpacked(each: str | Sequence[float]) -> np.ndarray:
    """The scores [questions] float64 that `packed` was given."""
    if not isinstance(each, str):
        return np.array(each, float)
    count, _, digits = each.partition(":")
    return np.unpackbits(np.frombuffer(bytes.fromhex(digits), np.uint8))[: int(count)].astype(float)


def units_of(task: Mapping[str, Any]) -> np.ndarray:
    """[questions] the number of the picture that each test question is about."""
    return np.repeat(np.arange(len(task["questions_per_picture"])), task["questions_per_picture"])
