"""Official files as streams of rows, each of which knows its file and its place there."""

from __future__ import annotations

import codecs
import csv
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from mmdora.errors import MmdoraError
from mmdora.prepare.index import Index
from mmdora.records.json_stream import Scanner, Value, text_of

MAX_CELL = 1 << 27
"""The longest cell of a table, in characters: enough for a picture in base64 (64 MiB of file are 90 million)."""
PARQUET_ROWS = 32
"""How many rows of a Parquet file are Python objects at a time; with their pictures they are some MB."""


class OfficialRow(NamedTuple):
    """A row of an official file.

    Attributes:
        value: the parsed row (of a JSON object: one key and its value); or the bytes of a JSON line that is still to
            be parsed; or the error of a row that could not be read.
        file: where it stands.
        line: its line, from 1; 0 in a file that has no lines.
        number: how many rows of the file come before it.
    """

    value: Any
    file: Path
    line: int
    number: int

    @property
    def where(self) -> str:
        """How errors name the row: by its line, or by its number where the whole file is one line."""
        lineless = self.line == 0 or (self.line == 1 and self.number)
        return f"{self.file}: row {self.number}" if lineless else f"{self.file}:{self.line}"


class Reader:
    """Opens the files of one run.

    Args:
        scratch: a folder for the indexes of joins.
        progress: is told how many bytes were read since it was last told.

    Attributes:
        read: how many bytes were read so far, second passes included.
    """

    def __init__(self, scratch: Path, progress: Callable[[int], Any] = lambda size: None):
        self.scratch, self.progress = scratch, progress
        self.read = 0
        self._indexes: list[tuple[Index, bool]] = []
        self._left: dict[Path, int] = {}  # how many bytes of each opened file are still to be read

    @property
    def files(self) -> list[Path]:
        """The files that were opened, in that order."""
        return list(self._left)

    @property
    def unmatched(self) -> int:
        """How many rows of complete indexes (see `index`) no other row belonged to."""
        return sum(index.unused for index, complete in self._indexes if complete)

    def __enter__(self) -> Reader:
        return self

    def __exit__(self, *error: object) -> None:
        for index, _ in self._indexes:
            index.close()

    def rows(self, path: Path) -> Iterator[OfficialRow]:
        """The rows of a file by its ending: .jsonl, .json (a list), .csv, .tsv, .parquet."""
        kinds = {
            ".jsonl": self.lines,
            ".json": self.elements,
            ".csv": self.table,
            ".tsv": self.table,
            ".parquet": self.parquet,
        }
        if path.suffix not in kinds:
            raise MmdoraError(f"{path}: not a file of rows ({', '.join(kinds)})")
        yield from kinds[path.suffix](path)

    def lines(self, path: Path) -> Iterator[OfficialRow]:
        """The lines of a file of JSON Lines, not parsed: `convert` does that, so that a broken line is one bad row."""
        with path.open("rb") as file:
            number = 0
            for line, text in enumerate(file, 1):
                self._passed(path, len(text))
                if line == 1:
                    text = text.removeprefix(codecs.BOM_UTF8)
                if text.strip():
                    yield OfficialRow(text, path, line, number)
                    number += 1

    def elements(self, path: Path, member: str | None = None, *, optional: bool = False) -> Iterator[OfficialRow]:
        """The elements of a JSON list; or of the list that is the value of the key `member` of a JSON object.

        Args:
            optional: a missing `member` counts as an empty list.
        """
        yield from self._values(path, Scanner(self._text(path), str(path)).elements(member, optional=optional))

    def items(self, path: Path) -> Iterator[OfficialRow]:
        """The entries of a JSON object as (key, value)."""
        yield from self._values(path, Scanner(self._text(path), str(path)).items())

    def header(self, path: Path) -> tuple[dict[str, Any], str]:
        """What a JSON object holds before its first list, and the key of that list (empty: there is none)."""
        return Scanner(self._text(path), str(path)).header()

    def table(self, path: Path) -> Iterator[OfficialRow]:
        """The rows of a CSV or TSV file as dicts of text; the file begins with the names of its columns."""
        csv.field_size_limit(MAX_CELL)
        dialect = "excel-tab" if path.suffix == ".tsv" else "excel"
        reader = csv.reader(self._text_lines(path), dialect)
        number = 0
        try:
            header = next(reader, [])
            if not header or len(set(header)) < len(header):
                raise MmdoraError(f"{path}: a table begins with the names of its columns, each once")
            end = reader.line_num
            for cells in reader:
                line, end = end + 1, reader.line_num
                if not cells:
                    continue
                value: Any = dict(zip(header, cells, strict=False))
                if len(cells) != len(header):
                    value = MmdoraError(f"{len(cells)} cells in a table of {len(header)} columns")
                yield OfficialRow(value, path, line, number)
                number += 1
        except csv.Error as error:
            raise MmdoraError(f"{path}:{reader.line_num}: broken table ({error})") from None

    def parquet(self, path: Path) -> Iterator[OfficialRow]:
        """The rows of a Parquet file as dicts, a few at a time."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            with pq.ParquetFile(path) as file:
                number, share = 0, path.stat().st_size / max(file.metadata.num_rows, 1)
                for batch in file.iter_batches(batch_size=PARQUET_ROWS):
                    for value in batch.to_pylist():
                        yield OfficialRow(value, path, 0, number)
                        number += 1
                    self._passed(path, round(share * batch.num_rows))
        except pa.ArrowInvalid as error:
            raise MmdoraError(f"{path}: not a readable Parquet file ({error})") from None

    def index(self, rows: Iterator[OfficialRow], key: str | None = None, *, complete: bool = True) -> Index:
        """Put rows on disk, to be found by a key: so two files are joined in constant memory.

        Args:
            key: a field of the rows, which are objects; None if they are the entries of one JSON object.
            complete: every one of them should belong to some row of the other file; the others are reported.

        Raises:
            MmdoraError: a row has no such field.
        """

        def pairs() -> Iterator[tuple[str, str]]:
            for row in rows:
                value = json.loads(row.value) if isinstance(row.value, bytes) else row.value
                if key is None:
                    yield value[0], json.dumps(value[1])
                elif isinstance(value, dict) and key in value:
                    yield str(value[key]), json.dumps(value)
                else:
                    raise MmdoraError(f"{row.where}: expected an object with the field {key!r}")

        index = Index(self.scratch / f"index-{len(self._indexes)}.sqlite", pairs())
        self._indexes.append((index, complete))
        return index

    def _values(self, path: Path, values: Iterator[Value]) -> Iterator[OfficialRow]:
        for number, (key, value, line) in enumerate(values):
            yield OfficialRow(value if key is None else (key, value), path, line, number)

    def _text(self, path: Path) -> Iterator[str]:
        return text_of(path, lambda size: self._passed(path, size))

    def _text_lines(self, path: Path) -> Iterator[str]:
        try:
            with path.open(encoding="utf-8-sig", newline="") as file:
                for line in file:
                    self._passed(path, len(line))  # these are characters, not bytes: near enough for a progress bar
                    yield line
        except UnicodeDecodeError:
            raise MmdoraError(f"{path}: not UTF-8 text") from None

    def _passed(self, path: Path, size: int) -> None:
        self.read += size
        left = self._left.setdefault(path, path.stat().st_size)
        self._left[path] = max(left - size, 0)  # a second pass over the file is no progress
        self.progress(left - self._left[path])


def split_of(path: Path) -> str | None:
    """The split in the name of an official file (train, val, dev, test, test-dev, testdev, test-std), or None."""
    named = re.search(r"(?<![a-z])(train|validation|val|dev|test(?:-?(?:dev|std))?)(?![a-z])", path.name.lower())
    return {"validation": "val"}.get(named[1], named[1]) if named else None
