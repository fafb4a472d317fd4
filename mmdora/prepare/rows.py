"""The usual ways to open official files that need not be joined: what `OfficialFiles.rows` is for most datasets."""

from __future__ import annotations

from collections.abc import Iterator

from mmdora.prepare.inputs import Inputs
from mmdora.prepare.read import OfficialRow, Reader


def json_lines(reader: Reader, inputs: Inputs) -> Iterator[OfficialRow]:
    """Every line of files of JSON Lines, whatever their names end with."""
    for path in inputs.files:
        yield from reader.lines(path)


def json_elements(reader: Reader, inputs: Inputs) -> Iterator[OfficialRow]:
    """Every element of files that hold one JSON list."""
    for path in inputs.files:
        yield from reader.elements(path)


def json_entries(reader: Reader, inputs: Inputs) -> Iterator[OfficialRow]:
    """Every entry, as (key, value), of files that hold one JSON object."""
    for path in inputs.files:
        yield from reader.items(path)


def by_ending(reader: Reader, inputs: Inputs) -> Iterator[OfficialRow]:
    """Every row of files whose ending says what they are: .jsonl, .json (a list), .csv, .tsv or .parquet."""
    for path in inputs.files:
        yield from reader.rows(path)
