"""Official files as streams of rows; every row knows its file and place."""

from __future__ import annotations

import codecs
import csv
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from mmdora.errors import MmdoraError
from mmdora.prepare.index import Index
from mmdora.records.json_stream import Scanner, Value, text_of

MAX_CELL = 1 << 27  # characters of a table cell; pictures stand there in base64


class Row(NamedTuple):
    """A row of an official file.

    `value` is the parsed row (of a dict: its key and value), the bytes of a JSONL line that is still
    to be parsed, or the error of a row that could not be read.
    """

    value: Any
    file: Path
    line: int  # from 1; 0 where a file has no lines
    number: int  # from 0, in its file

    @property
    def where(self) -> str:
        single = self.line == 0 or (self.line == 1 and self.number)  # the whole file on one line
        return f"{self.file}: row {self.number}" if single else f"{self.file}:{self.line}"


class Reader:
    """Opens the files of one run; `read` counts the bytes that passed, `scratch` holds its indexes."""

    def __init__(self, scratch: Path, progress: Callable[[int], Any] = lambda size: None):
        self.scratch, self.progress = scratch, progress
        self.read = 0
        self._indexes: list[tuple[Index, bool]] = []
        self._left: dict[Path, int] = {}  # bytes of every file that was opened, less those that passed

    @property
    def files(self) -> list[Path]:
        """The files that were read."""
        return list(self._left)

    @property
    def unmatched(self) -> int:
        """Rows of complete indexes that nobody asked for."""
        return sum(index.unused for index, complete in self._indexes if complete)

    def __enter__(self) -> Reader:
        return self

    def __exit__(self, *error: object) -> None:
        for index, _ in self._indexes:
            index.close()

    def rows(self, path: Path) -> Iterator[Row]:
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

    def lines(self, path: Path) -> Iterator[Row]:
        """JSON Lines; a line is parsed where it is converted, so that one broken line is one bad row."""
        with path.open("rb") as file:
            number = 0
            for line, text in enumerate(file, 1):
                self._passed(path, len(text))
                if line == 1:
                    text = text.removeprefix(codecs.BOM_UTF8)
                if text.strip():
                    yield Row(text, path, line, number)
                    number += 1

    def elements(self, path: Path, member: str | None = None, *, optional: bool = False) -> Iterator[Row]:
        """The elements of a JSON list, or of the list `member` (which may be `optional`) of a JSON object."""
        yield from self._values(path, Scanner(self._text(path), str(path)).elements(member, optional=optional))

    def items(self, path: Path) -> Iterator[Row]:
        """The entries of a JSON object as (key, value)."""
        yield from self._values(path, Scanner(self._text(path), str(path)).items())

    def header(self, path: Path) -> tuple[dict[str, Any], str]:
        """What a JSON object holds before its first list, and the name of that list."""
        return Scanner(self._text(path), str(path)).header()

    def table(self, path: Path) -> Iterator[Row]:
        """The rows of a CSV or TSV file, which begins with the names of its columns, as dicts of text."""
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
                yield Row(value, path, line, number)
                number += 1
        except csv.Error as error:
            raise MmdoraError(f"{path}:{reader.line_num}: broken table ({error})") from None

    def parquet(self, path: Path) -> Iterator[Row]:
        """The rows of a Parquet file as dicts, a few at a time."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            with pq.ParquetFile(path) as file:
                number, share = 0, path.stat().st_size / max(file.metadata.num_rows, 1)
                for batch in file.iter_batches(batch_size=32):
                    for value in batch.to_pylist():
                        yield Row(value, path, 0, number)
                        number += 1
                    self._passed(path, round(share * batch.num_rows))
        except pa.ArrowInvalid as error:
            raise MmdoraError(f"{path}: not a readable Parquet file ({error})") from None

    def index(self, rows: Iterator[Row], key: str | None = None, *, complete: bool = True) -> Index:
        """Rows by key, on disk: what joins two files in constant memory.

        Args:
            key: the field of the objects that `rows` holds; None for the entries of a JSON object.
            complete: every one of them should be asked for; those that are not are reported.
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

    def _values(self, path: Path, values: Iterator[Value]) -> Iterator[Row]:
        for number, (key, value, line) in enumerate(values):
            yield Row(value if key is None else (key, value), path, line, number)

    def _text(self, path: Path) -> Iterator[str]:
        return text_of(path, lambda size: self._passed(path, size))

    def _text_lines(self, path: Path) -> Iterator[str]:
        try:
            with path.open(encoding="utf-8-sig", newline="") as file:
                for line in file:
                    self._passed(path, len(line))  # characters; near enough for progress
                    yield line
        except UnicodeDecodeError:
            raise MmdoraError(f"{path}: not UTF-8 text") from None

    def _passed(self, path: Path, size: int) -> None:
        self.read += size
        left = self._left.setdefault(path, path.stat().st_size)
        self._left[path] = max(left - size, 0)  # a second pass is no progress
        self.progress(left - self._left[path])
