"""From predictions back to the files that official scorers and servers read."""

from __future__ import annotations

import csv
import json
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

from mmdora.errors import MmdoraError
from mmdora.prepare.record import chosen
from mmdora.records.record import Record


def answered(records: Iterable[Record], predictions: Mapping[str, str]) -> Iterator[tuple[dict[str, Any], str]]:
    """The `meta` of every record with the text that was predicted for it, in the order of the records.

    Args:
        predictions: record id -> generated text, as it came or as its task's scorer hands it in.

    Raises:
        MmdoraError: if a record has no prediction; servers reject incomplete files.
    """
    for record in records:
        if record["id"] not in predictions:
            raise MmdoraError(f"no prediction for record {record['id']}; a result file needs one for each")
        yield record["meta"], predictions[record["id"]].strip()


def chosen_answers(records: Iterable[Record], predictions: Mapping[str, str]) -> Iterator[tuple[dict[str, Any], int]]:
    """Like `answered` for multiple choice: the index of the choice, -1 (always wrong) where the text names none."""
    for meta, text in answered(records, predictions):
        index = chosen(text, meta["choices"])
        yield meta, -1 if index is None else index


def write_json(path: Path, rows: Iterable[Any]) -> Path:
    """A JSON list, written row by row."""
    with path.open("w", encoding="utf-8") as file:
        for number, row in enumerate(rows):
            file.write((",\n" if number else "[\n") + json.dumps(row, ensure_ascii=False))
        file.write("\n]\n" if file.tell() else "[]\n")
    return path


def write_json_object(path: Path, items: Mapping[str, Any]) -> Path:
    path.write_text(json.dumps(items, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    return path


def write_jsonl(path: Path, rows: Iterable[Any]) -> Path:
    with path.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    return path


def write_csv(path: Path, rows: Iterable[Sequence[Any]]) -> Path:
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows(rows)
    return path


SHEET = """<?xml version="1.0" encoding="UTF-8" standalone="yes"?>
<worksheet xmlns="http://schemas.openxmlformats.org/spreadsheetml/2006/main"><sheetData>"""
PARTS = {
    "[Content_Types].xml": """<?xml version="1.0" encoding="UTF-8" standalone="yes"?>
<Types xmlns="http://schemas.openxmlformats.org/package/2006/content-types">
<Default Extension="rels" ContentType="application/vnd.openxmlformats-package.relationships+xml"/>
<Override PartName="/xl/workbook.xml"
 ContentType="application/vnd.openxmlformats-officedocument.spreadsheetml.sheet.main+xml"/>
<Override PartName="/xl/worksheets/sheet1.xml"
 ContentType="application/vnd.openxmlformats-officedocument.spreadsheetml.worksheet+xml"/></Types>""",
    "_rels/.rels": """<?xml version="1.0" encoding="UTF-8" standalone="yes"?>
<Relationships xmlns="http://schemas.openxmlformats.org/package/2006/relationships"><Relationship Id="rId1"
 Type="http://schemas.openxmlformats.org/officeDocument/2006/relationships/officeDocument"
 Target="xl/workbook.xml"/></Relationships>""",
    "xl/workbook.xml": """<?xml version="1.0" encoding="UTF-8" standalone="yes"?>
<workbook xmlns="http://schemas.openxmlformats.org/spreadsheetml/2006/main"
 xmlns:r="http://schemas.openxmlformats.org/officeDocument/2006/relationships"><sheets>
<sheet name="Sheet1" sheetId="1" r:id="rId1"/></sheets></workbook>""",
    "xl/_rels/workbook.xml.rels": """<?xml version="1.0" encoding="UTF-8" standalone="yes"?>
<Relationships xmlns="http://schemas.openxmlformats.org/package/2006/relationships"><Relationship Id="rId1"
 Type="http://schemas.openxmlformats.org/officeDocument/2006/relationships/worksheet"
 Target="worksheets/sheet1.xml"/></Relationships>""",
}


def write_xlsx(path: Path, rows: Iterable[Sequence[Any]]) -> Path:
    """A workbook of one sheet (ECMA-376, cells as inline text or numbers), for servers that take nothing else."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, text in PARTS.items():
            file.writestr(name, text)
        with file.open("xl/worksheets/sheet1.xml", "w") as sheet:
            sheet.write(SHEET.encode())
            for row in rows:
                sheet.write(f"<row>{''.join(map(_cell, row))}</row>".encode())
            sheet.write(b"</sheetData></worksheet>")
    return path


def _cell(value: Any) -> str:
    if isinstance(value, int):
        return f"<c><v>{value}</v></c>"
    text = "".join(character for character in str(value) if character >= " " or character in "\t\n")
    return f'<c t="inlineStr"><is><t xml:space="preserve">{escape(text)}</t></is></c>'
