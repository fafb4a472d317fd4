"""Reads files of records; the module `record` says what a record is.

A file is JSONL of records, Parquet with the images inside (`mmdora prep --pack`), or a JSON list in LLaVA's layout.
`datasets` reads it once, as a stream, into a memory-mapped Arrow table, which every loader process opens by its file
name. No list or object per row is kept in memory.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import repeat
from pathlib import Path
from typing import Any

import numpy as np

from mmdora.errors import MmdoraError
from mmdora.files import ordinary, write_whole
from mmdora.records import packed
from mmdora.records.card import images_root
from mmdora.records.parse import parse, suffix_of
from mmdora.records.record import Record, content_of
from mmdora.records.row import Row, row_of
from mmdora.records.table import FILES, open_table
from mmdora.records.turns import answer_text, split_turns
from mmdora.records.videos import FRAMES

READ_AHEAD = 64  # Records taken from the table at once when all are read in turn; reading with fewer is slower.


class Records:
    """A read-only sequence of records on disk, given out as rows; `root` is the folder that their paths start from."""

    def __init__(self, path: Path | str, images: Path | str | None = None, *, max_turns: int | None = None):
        self.path = Path(path)
        ordinary(self.path, "file of records (mmdora prep makes one)")
        self.root = Path(images) if images is not None else images_root(self.path)
        if not self.root.is_dir():
            raise MmdoraError(f"{self.root}: the images root is not a folder")
        status = self.path.stat()
        self._suffix = suffix_of(self.path)
        source = {
            "path": str(self.path.resolve()),
            # `datasets` names its cache after these values, so a file of another size or time is read anew.
            "stamp": (status.st_size, status.st_mtime_ns),
            "max_turns": max_turns,
        }
        self._table = self._opened(source)
        self._change: Callable[[Row], Row] | None = None
        self._changed = ""

    def changed_by(self, change: Callable[[Row], Row], name: str) -> Records:
        """These records, whose rows are given out after `change`.

        Args:
            change: must be picklable; loader processes call it too.
            name: what decides the change beside the rows and the processor, for the fingerprint; "" if nothing does.
        """
        other = copy.copy(self)
        other._change, other._changed = change, name
        return other

    def _opened(self, source: dict[str, Any]) -> Any:
        import datasets

        columns: dict[str, Any] = {
            "id": datasets.Value("large_string"),
            "json": datasets.Value("large_string"),
            "characters": datasets.Value("int32"),
            "images": datasets.Value("int32"),
            "frames": datasets.Value("int32"),
            "answered": datasets.Value("bool"),
            "content": datasets.Value("int64"),
        }
        if self._suffix != packed.SUFFIX:
            return open_table(self.path, _rows, source, columns)
        columns[FILES] = datasets.List(datasets.Value("large_binary"))
        return open_table(self.path, _rows, source, columns, packed.ROWS)

    def __len__(self) -> int:
        return len(self._table)

    def __getitem__(self, index: int) -> Row:
        kept = self._table[int(index)]
        return self._given(row_of(json.loads(kept["json"]), self.root, kept.get(FILES)))

    def __iter__(self) -> Iterator[Row]:
        for start in range(0, len(self), READ_AHEAD):
            kept = self._table[start : start + READ_AHEAD]
            for line, files in zip(kept["json"], kept.get(FILES, repeat(None)), strict=False):
                yield self._given(row_of(json.loads(line), self.root, files))

    def _given(self, row: Row) -> Row:
        return row if self._change is None else self._change(row)

    @property
    def ids(self) -> Any:
        """[rows] strings: the ids, as a chunked Arrow array, because a Python list of a million ids takes 70 MB."""
        return self._table.data.column("id")

    @property
    def characters(self) -> np.ndarray:
        """[rows] int32: characters of text in each record."""
        return self._table.data.column("characters").to_numpy()

    @property
    def images(self) -> np.ndarray:
        """[rows] int32: number of images and videos in each record."""
        return self._table.data.column("images").to_numpy()

    @property
    def frames(self) -> np.ndarray:
        """[rows] int32: frames of each video of a record; 0 without a video, -1 if its videos differ in it."""
        return self._table.data.column("frames").to_numpy()

    @property
    def contents(self) -> Any:
        """[rows] int64, as a chunked Arrow array: a hash of each record's messages and names of images.

        The pieces of a conversation that was cut into several records have the hash of the whole conversation.
        """
        return self._table.data.column("content")

    def check_answered(self) -> None:
        """Raise an MmdoraError if a record's last answer is empty, because it would teach the model to say nothing.

        Records of public test sets have empty answers; they can be evaluated, but not trained on.
        """
        answered = self._table.data.column("answered").to_numpy()
        if not answered.all():
            empty = np.flatnonzero(~answered)
            raise MmdoraError(
                f"{self.path}: record {self[empty[0]]['id']} has an empty last answer ({len(empty):,} of "
                f"{len(self):,} do), so there is nothing to learn; leave such records out"
            )

    @property
    def fingerprint(self) -> str:
        """A hash that changes whenever the file of records, `max_turns`, the table's columns or a change of its rows
        do."""
        return self._table._fingerprint + self._changed

    @property
    def cache(self) -> Path:
        """The folder of the Arrow table, where other facts about these records are kept too."""
        return Path(self._table.cache_files[0]["filename"]).parent


def read_records(path: Path | str, images: Path | str | None = None, *, max_turns: int | None = None) -> Records:
    """Open a file of records; `images` is the root of its image paths (default: see `images_root`).

    Args:
        max_turns: the most turns of a record; a longer conversation becomes several records, each with the images and
            the system text.

    Raises:
        MmdoraError: naming file and line of the first row that is not a record.
    """
    return Records(path, images, max_turns=max_turns)


def write_records(path: Path, rows: Iterable[Mapping[str, Any]]) -> int:
    """Write records as JSONL; gives their number. A half-written file never has the final name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    count = 0

    def write(partial: Path) -> None:
        nonlocal count
        with partial.open("w", encoding="utf-8") as file:
            for row in rows:
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
                count += 1

    write_whole(path, write)
    return count


def _frames(record: Record) -> int:
    """The frames of each video of a record, as in `Records.frames`."""
    parts = [part for message in record["messages"] for part in message["content"] if part["type"] == "video"]
    counts = {part.get("frames", FRAMES) for part in parts}
    return 0 if not counts else counts.pop() if len(counts) == 1 else -1


def _rows(path: str, stamp: tuple[int, int], max_turns: int | None) -> Iterator[dict[str, Any]]:
    del stamp
    empty = True
    for record, files in parse(Path(path)):
        empty, content = False, content_of(record)
        for piece in split_turns(record, max_turns):
            row = {
                "id": piece["id"],
                "json": json.dumps(piece, ensure_ascii=False),
                "characters": sum(len(part.get("text", "")) for m in piece["messages"] for part in m["content"]),
                "images": len(piece["images"]) + len(piece.get("videos", [])),
                "frames": _frames(piece),
                "answered": bool(answer_text(piece).strip()),
                "content": content,
            }
            yield row if files is None else row | {FILES: files}
    if empty:
        raise MmdoraError(f"{path}: holds no records")
