"""The usual ways to open official files that need not be joined: what `OfficialFiles.rows` is for most datasets."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from mmdora.errors import MmdoraError
from mmdora.prepare.inputs import Inputs
from mmdora.prepare.read import OfficialRow, Reader

LABELS = "-labels.lst"
"""How the name of a file of labels ends."""


def json_lines(reader: Reader, inputs: Inputs) -> Iterator[OfficialRow]:
    """Every line of files of JSON Lines, whatever their names end with."""
    for path in inputs.files:
        yield from reader.lines(path)


def labelled_rows(reader: Reader, inputs: Inputs) -> Iterator[OfficialRow]:
    """Every row of files of text: a JSON list (.json), Parquet (.parquet), or JSON Lines, whatever the name ends with.

    The answers of `NAME.jsonl` may stand in `NAME-labels.lst`, a line for each row; they become the field `label`.

    Raises:
        MmdoraError: a file of labels has no file of questions, or another number of lines.
    """
    kinds = {".json": reader.elements, ".parquet": reader.parquet}
    labels = {path.name.removesuffix(LABELS): path for path in inputs.files if path.name.endswith(LABELS)}
    for path in inputs.files:
        if path.name.endswith(LABELS):
            continue
        rows = kinds.get(path.suffix, reader.lines)(path)
        beside = labels.pop(path.stem, None)
        yield from rows if beside is None else _labelled(rows, reader.lines(beside), beside)
    for path in labels.values():
        raise MmdoraError(f"{path}: labels without their questions; add {path.name.removesuffix(LABELS)}.jsonl to --in")


def _labelled(rows: Iterator[OfficialRow], labels: Iterator[OfficialRow], beside: Path) -> Iterator[OfficialRow]:
    for row in rows:
        label = next(labels, None)
        if label is None:
            raise MmdoraError(f"{beside}: ends before the questions do; it needs a line for each")
        try:
            value = json.loads(row.value) | {"label": label.value.decode().strip()}
        except (ValueError, TypeError):
            value = row.value  # `convert` parses the line again and says what is wrong with it.
        yield row._replace(value=value)
    if next(labels, None) is not None:
        raise MmdoraError(f"{beside}: has more lines than there are questions")


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
