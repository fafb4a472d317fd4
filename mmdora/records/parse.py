"""Reads the records in a file one after another; the ending of the file's name says which format it has."""

from __future__ import annotations

from codecs import BOM_UTF8
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import IO

from tqdm import tqdm

from mmdora.errors import MmdoraError
from mmdora.records import packed
from mmdora.records.json_stream import MAX_VALUE, Scanner, parse_line, text_of
from mmdora.records.llava_json import to_record
from mmdora.records.record import Record, check_record


def suffix_of(path: Path) -> str:
    """The ending of a file's name, in lower case: .jsonl, .json or .parquet.

    Raises:
        MmdoraError: if the file is a CSV or TSV table; the message names the command that makes records of it.
    """
    suffix = path.suffix.lower()
    if suffix in (".csv", ".tsv"):
        raise MmdoraError(f"{path}: a table is no file of records; mmdora prep folder --in {path} makes records of it")
    return suffix


def parse(path: Path) -> Iterator[tuple[Record, list[bytes] | None]]:
    """Yield every record in a file, with the contents of its images if they are packed."""
    suffix = suffix_of(path)
    if suffix == packed.SUFFIX:
        rows = (
            (check_record(row, f"{path}: row {n}"), files) for n, (row, files) in enumerate(packed.read_packed(path))
        )
    else:
        rows = ((record, None) for record in (_llava(path) if suffix == ".json" else _lines(path)))
    yield from tqdm(rows, desc="read records", unit="row", unit_scale=True, delay=1)


def _llava(path: Path) -> Iterator[Record]:
    scanner = Scanner(text_of(path), str(path))
    if scanner.peek() not in ("", "["):
        raise MmdoraError(
            f"{path}: expected a JSON list in LLaVA's layout, found {scanner.peek()!r} first; if it holds a record a "
            "line (JSON Lines), give it the ending .jsonl"
        )
    for number, (_, row, line) in enumerate(scanner.elements()):
        where = f"{path}: row {number} (line {line})"
        yield check_record(to_record(row, where) if isinstance(row, dict) else row, where)


def numbered_lines(file: IO[bytes], name: str) -> Iterator[tuple[bytes, str]]:
    """Yield the lines of a JSONL file that are not blank, each with its name in errors (file and line number)."""
    for number, line in enumerate(iter(partial(file.readline, MAX_VALUE + 1), b""), 1):
        where = f"{name}:{number}"
        if len(line) > MAX_VALUE:
            raise MmdoraError(f"{where}: longer than {MAX_VALUE >> 20} MiB, the most that a record may have")
        line = line.removeprefix(BOM_UTF8) if number == 1 else line
        if line.strip():
            yield line, where


def record_of(line: bytes, where: str) -> Record:
    """Parse a line of JSONL as a record.

    Raises:
        MmdoraError: if the line is no record; the message says what is wrong and where.
    """
    try:
        return check_record(parse_line(line), where)
    except MmdoraError as error:
        raise error if str(error).startswith(where) else MmdoraError(f"{where}: {error}") from None


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
