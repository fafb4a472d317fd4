"""How a file of records is read; `record` says what one is.

Files are JSONL of records, Parquet with the images inside (`mmdora prep --pack`), or a JSON list in LLaVA's layout.
They are read once, as a stream, into a memory-mapped Arrow table by `datasets`, which every loader process opens by
its file name; no list or object per row is held anywhere.
"""

from __future__ import annotations

import json
from codecs import BOM_UTF8
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from itertools import repeat
from pathlib import Path
from typing import IO, Any

import numpy as np
from tqdm import tqdm

from mmdora.errors import MmdoraError
from mmdora.files import ordinary, write_whole
from mmdora.records import packed
from mmdora.records.json_stream import MAX_VALUE, Scanner, parse_line, text_of
from mmdora.records.llava_json import to_record
from mmdora.records.record import Record, check_record
from mmdora.records.row import Row, row_of
from mmdora.records.turns import answer_text, split_turns

READ_AHEAD = 64  # records decoded together when all are read in turn


class Records:
    """A read-only sequence of records on disk, given out as rows; `root` is where their paths start."""

    def __init__(self, path: Path | str, images: Path | str | None = None, *, max_turns: int | None = None):
        import datasets

        self.path = Path(path)
        ordinary(self.path, "file of records (mmdora prep makes one)")
        self.root = Path(images) if images is not None else self.path.parent
        if not self.root.is_dir():
            raise MmdoraError(f"{self.root}: the images root is not a folder")
        status = self.path.stat()
        columns: dict[str, Any] = {
            "id": datasets.Value("large_string"),
            "json": datasets.Value("large_string"),
            "characters": datasets.Value("int32"),
            "images": datasets.Value("int32"),
            "answered": datasets.Value("bool"),
        }
        batch = {}
        if self.path.suffix == packed.SUFFIX:
            columns["files"] = datasets.List(datasets.Value("large_binary"))
            batch["writer_batch_size"] = packed.ROWS  # rows that wait in memory
        datasets.disable_progress_bars()
        try:
            self._table = datasets.Dataset.from_generator(
                _rows,
                features=datasets.Features(columns),
                # size and time make a changed file another dataset for the cache
                gen_kwargs={
                    "path": str(self.path.resolve()),
                    "stamp": (status.st_size, status.st_mtime_ns),
                    "max_turns": max_turns,
                },
                **batch,
            )
        except Exception as error:
            cause: BaseException | None = error
            while cause is not None and not isinstance(cause, MmdoraError):
                cause = cause.__cause__ or cause.__context__
            raise cause or error from None

    def __len__(self) -> int:
        return len(self._table)

    def __getitem__(self, index: int) -> Row:
        kept = self._table[int(index)]
        return row_of(json.loads(kept["json"]), self.root, kept.get("files"))

    def __iter__(self) -> Iterator[Row]:
        for start in range(0, len(self), READ_AHEAD):
            kept = self._table[start : start + READ_AHEAD]
            for line, files in zip(kept["json"], kept.get("files", repeat(None)), strict=False):
                yield row_of(json.loads(line), self.root, files)

    @property
    def ids(self) -> Any:
        """[rows] strings, as a chunked array of Arrow: a Python list of a million takes 70 MB."""
        return self._table.data.column("id")

    @property
    def characters(self) -> np.ndarray:
        """[rows] int32: characters of text per record."""
        return self._table.data.column("characters").to_numpy()

    @property
    def images(self) -> np.ndarray:
        """[rows] int32: images per record."""
        return self._table.data.column("images").to_numpy()

    def check_answered(self) -> None:
        """Raise for a record whose last answer is empty: to learn from it is to learn to say nothing.

        The test sets of public datasets are such records; they can be evaluated, not trained on.
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
        """Differs when the file of records, `max_turns` or the table's columns do."""
        return self._table._fingerprint

    @property
    def cache(self) -> Path:
        """The folder of the Arrow table, for what else is kept about these records."""
        return Path(self._table.cache_files[0]["filename"]).parent


def read_records(path: Path | str, images: Path | str | None = None, *, max_turns: int | None = None) -> Records:
    """Open a file of records; `images` is the root of its image paths (default: the file's folder).

    Args:
        max_turns: longer conversations become several records, each with the images and system text.

    Raises:
        MmdoraError: naming file and line of the first row that is not a record.
    """
    return Records(path, images, max_turns=max_turns)


def write_records(path: Path, rows: Iterable[Mapping[str, Any]]) -> int:
    """Write JSONL through a temporary file, so that a half-written one never has the final name."""
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


def numbered_lines(file: IO[bytes], name: str) -> Iterator[tuple[bytes, str]]:
    """The lines of a JSONL file that are not blank, and how errors call each."""
    for number, line in enumerate(iter(partial(file.readline, MAX_VALUE + 1), b""), 1):
        where = f"{name}:{number}"
        if len(line) > MAX_VALUE:
            raise MmdoraError(f"{where}: longer than {MAX_VALUE >> 20} MiB, which no record is")
        line = line.removeprefix(BOM_UTF8) if number == 1 else line
        if line.strip():
            yield line, where


def record_of(line: bytes, where: str) -> Record:
    """A line as a record.

    Raises:
        MmdoraError: saying what is wrong with it and where.
    """
    try:
        return check_record(parse_line(line), where)
    except MmdoraError as error:
        raise error if str(error).startswith(where) else MmdoraError(f"{where}: {error}") from None


def _rows(path: str, stamp: tuple[int, int], max_turns: int | None) -> Iterator[dict[str, Any]]:
    del stamp
    empty = True
    for record, files in _parse(Path(path)):
        empty = False
        for piece in split_turns(record, max_turns):
            row = {
                "id": piece["id"],
                "json": json.dumps(piece, ensure_ascii=False),
                "characters": sum(len(part.get("text", "")) for m in piece["messages"] for part in m["content"]),
                "images": len(piece["images"]),
                "answered": bool(answer_text(piece).strip()),
            }
            yield row if files is None else row | {"files": files}
    if empty:
        raise MmdoraError(f"{path}: holds no records")


def _parse(path: Path) -> Iterator[tuple[Record, list[bytes] | None]]:
    """Every record of a file, with the files of its images if they are packed."""
    if path.suffix == packed.SUFFIX:
        rows = (
            (check_record(row, f"{path}: row {n}"), files) for n, (row, files) in enumerate(packed.read_packed(path))
        )
    else:
        rows = ((record, None) for record in (_llava(path) if path.suffix == ".json" else _lines(path)))
    yield from tqdm(rows, desc="read records", unit="row", unit_scale=True, delay=1)


def _llava(path: Path) -> Iterator[Record]:
    scanner = Scanner(text_of(path), str(path))
    if scanner.peek() not in ("", "["):
        raise MmdoraError(f"{path}: expected a JSON list in LLaVA's layout, or JSONL with the ending .jsonl")
    for number, (_, row, line) in enumerate(scanner.elements()):
        where = f"{path}: row {number} (line {line})"
        yield check_record(to_record(row, where) if isinstance(row, dict) else row, where)


def _lines(path: Path) -> Iterator[Record]:
    bad: list[MmdoraError] = []
    with path.open("rb") as file:
        for line, where in numbered_lines(file, str(path)):
            try:
                record = record_of(line, where)
            except MmdoraError as error:
                bad.append(error)
                continue
            yield record
    if bad:
        more = f"; {len(bad):,} rows of this file are bad" if len(bad) > 1 else ""
        raise MmdoraError(f"{bad[0]}{more}")
