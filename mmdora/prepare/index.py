"""Two tables in scratch files on disk: objects by key, which joins files in constant memory, and ids seen so far."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from mmdora.errors import MmdoraError

CACHE_KIB = 8_192
"""The size of SQLite's page cache, in KiB. Four times as much makes ids in random order a sixth faster, others not."""


def _open(path: Path) -> sqlite3.Connection:
    """Open a scratch database. Nothing in it outlives the run, so nothing is made safe against a crash."""
    database = sqlite3.connect(path, isolation_level=None)
    for setting in ("journal_mode=OFF", "synchronous=OFF", "locking_mode=EXCLUSIVE", f"cache_size=-{CACHE_KIB}"):
        database.execute(f"PRAGMA {setting}")
    return database


class Index:
    """JSON texts by key: several per key, in the order in which they came.

    Args:
        path: the file to make.
        pairs: (key, JSON text).
    """

    def __init__(self, path: Path, pairs: Iterable[tuple[str, str]]):
        self._database = _open(path)
        self._database.execute("CREATE TABLE rows (key TEXT, value TEXT, used INTEGER DEFAULT 0)")
        self._database.execute("BEGIN")
        self._database.executemany("INSERT INTO rows (key, value) VALUES (?, ?)", pairs)
        self._database.execute("CREATE INDEX by_key ON rows (key)")
        self._database.execute("COMMIT")
        self._database.execute("BEGIN")  # one transaction for all marks of use

    def all(self, key: Any) -> list[Any]:
        """The objects of `key`, which now count as used."""
        texts = self._database.execute("SELECT value FROM rows WHERE key = ? ORDER BY rowid", (str(key),)).fetchall()
        if texts:
            self._database.execute("UPDATE rows SET used = 1 WHERE key = ?", (str(key),))
        return [json.loads(text) for (text,) in texts]

    def one(self, key: Any, what: str) -> Any:
        """The object of `key`, which now counts as used.

        Args:
            what: what the key names, for the message, as in "question".

        Raises:
            MmdoraError: there is none, or more than one.
        """
        objects = self.all(key)
        if len(objects) != 1:
            raise MmdoraError(f"{len(objects)} annotations of {what} {key} instead of one")
        return objects[0]

    def __len__(self) -> int:
        return self._database.execute("SELECT count(*) FROM rows").fetchone()[0]

    @property
    def unused(self) -> int:
        """How many objects were never asked for."""
        return self._database.execute("SELECT count(*) FROM rows WHERE used = 0").fetchone()[0]

    def close(self) -> None:
        self._database.close()


class Seen:
    """A set of names on disk."""

    def __init__(self, path: Path):
        self._database = _open(path)
        self._database.execute("CREATE TABLE seen (name TEXT PRIMARY KEY) WITHOUT ROWID")
        self._database.execute("BEGIN")

    def add(self, name: str) -> bool:
        """Remember `name`; return whether it is new."""
        return self._database.execute("INSERT OR IGNORE INTO seen VALUES (?)", (name,)).rowcount == 1

    def close(self) -> None:
        self._database.close()
