"""From predictions back to the files that official scorers and servers read."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import IO, Any

from mmdora.errors import MmdoraError
from mmdora.files import write_whole
from mmdora.prepare.record import chosen
from mmdora.records.record import RecordFacts


def answered(records: Iterable[RecordFacts], predictions: Mapping[str, str]) -> Iterator[tuple[dict[str, Any], str]]:
    """The `meta` of every record with the text that was predicted for it, in the order of the records.

    Args:
        predictions: record id -> generated text, either as it came or as its task's scorer hands it in.

    Raises:
        MmdoraError: a record has no prediction; servers reject incomplete files.
    """
    for record in records:
        if record["id"] not in predictions:
            raise MmdoraError(f"no prediction for record {record['id']}; a result file needs one for each")
        yield record["meta"], predictions[record["id"]].strip()


def chosen_answers(
    records: Iterable[RecordFacts], predictions: Mapping[str, str]
) -> Iterator[tuple[dict[str, Any], int]]:
    """As `answered`, with the index of the choice instead of the text; -1, always wrong, if the text names none."""
    for meta, text in answered(records, predictions):
        index = chosen(text, meta["choices"])
        yield meta, -1 if index is None else index


def answers_by_question(records: Iterable[RecordFacts], predictions: Mapping[str, str], path: Path) -> Path:
    """Write `[{question_id, answer}]`, the result format of VQA's server and official scorer."""
    rows = ({"question_id": meta["question_id"], "answer": text} for meta, text in answered(records, predictions))
    return write_json_list(path, rows)


def write_json_list(path: Path, rows: Iterable[Any]) -> Path:
    """Write a JSON list row by row, an element a line."""

    def write(file: IO[str]) -> None:
        for number, row in enumerate(rows):
            file.write((",\n" if number else "[\n") + json.dumps(row, ensure_ascii=False))
        file.write("\n]\n" if file.tell() else "[]\n")

    return _written(path, write)


def write_json_object(path: Path, items: Mapping[str, Any]) -> Path:
    """Write a JSON object, a key a line."""
    write_whole(path, json.dumps(items, ensure_ascii=False, indent=1) + "\n")
    return path


def write_jsonl(path: Path, rows: Iterable[Any]) -> Path:
    """Write JSON Lines."""
    lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    return _written(path, lambda file: file.writelines(lines))


def write_csv(path: Path, rows: Iterable[Sequence[Any]]) -> Path:
    """Write comma-separated values."""
    return _written(path, lambda file: csv.writer(file, lineterminator="\n").writerows(rows))


def check_openpyxl() -> None:
    """Raise if openpyxl is missing, which `write_xlsx` needs."""
    try:
        import openpyxl  # noqa: F401
    except ImportError:
        raise MmdoraError("a result file in .xlsx needs openpyxl: pip install 'mmdora[eval]'") from None


def write_xlsx(path: Path, rows: Iterable[Sequence[str | int]]) -> Path:
    """Write a workbook of one sheet, for servers that take nothing else.

    Control characters, which a workbook cannot hold, are left out. A text that begins with `=` stays a text: openpyxl
    alone would make a formula of it, which readers see as an empty cell.

    Raises:
        MmdoraError: openpyxl is not installed.
    """
    check_openpyxl()
    write_whole(path, partial(_write_workbook, list(rows)))  # an error among the rows comes before a workbook is open
    return path


def _write_workbook(rows: Sequence[Sequence[str | int]], path: Path) -> None:
    from openpyxl import Workbook
    from openpyxl.cell import WriteOnlyCell
    from openpyxl.cell.cell import ILLEGAL_CHARACTERS_RE, TYPE_STRING

    book = Workbook(write_only=True)  # cells are written as they come; kept ones would take 50 times their file
    sheet = book.create_sheet()

    def cell(value: str | int) -> Any:
        if isinstance(value, int):
            return value
        text = ILLEGAL_CHARACTERS_RE.sub("", value)
        if not text.startswith("="):
            return text
        kept = WriteOnlyCell(sheet, text)
        kept.data_type = TYPE_STRING
        return kept

    for row in rows:
        sheet.append([cell(value) for value in row])
    book.save(path)


def _written(path: Path, write: Callable[[IO[str]], object]) -> Path:
    """Write a text file (UTF-8), whole or not at all, by a function that is given the open file."""

    def to(partial_file: Path) -> None:
        with partial_file.open("w", encoding="utf-8", newline="\n") as file:
            write(file)

    write_whole(path, to)
    return path
