"""What a stage found, in a file that is written anew with each row, so that a stage that is cut off leaves the rest."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any


class Sheet:
    """The tables and notes of one stage.

    Args:
        path: of the JSON file.
        small: whether the stage shall run in its small form, which fits a CPU and measures nothing of worth.
    """

    def __init__(self, path: Path, small: bool):
        self.path, self.small = path, small
        self._found: dict[str, Any] = {"tables": {}, "notes": []}
        self._write()

    def row(self, table: str, **columns: Any) -> None:
        """Add a row to a table; all rows of a table have the same columns. A `_` in a name stands for a space."""
        cells = {name.replace("_", " "): value for name, value in columns.items()}
        self._found["tables"].setdefault(table, []).append(cells)
        self._write()

    def rows(self, table: str, rows: list[dict[str, Any]]) -> None:
        """Put rows in the place of a table's."""
        self._found["tables"][table] = rows
        self._write()

    def drop(self, table: str) -> None:
        """Take a table away, for which another has come."""
        del self._found["tables"][table]
        self._write()

    def note(self, line: str) -> None:
        self._found["notes"].append(line)
        self._write()

    def _write(self) -> None:
        write_json(self.path, self._found)


def write_json(path: Path, value: Any) -> None:
    """Write a file such that a reader finds either all of it or what was there before."""
    beside = path.with_suffix(".part")
    beside.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")
    os.replace(beside, path)
