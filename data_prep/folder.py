"""A plain folder: images, and a table of `image, question, answer`.

CSV, TSV, JSONL or a JSON list with the columns `image`, `question`, `answer`; `id` and `split` if there
are such columns. An empty `image` is a row without one, an empty or missing `answer` one to be answered.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from mmdora.prepare.inputs import ImageInputs
from mmdora.prepare.read import Reader, Row
from mmdora.prepare.record import asked
from mmdora.prepare.results import answered, write_jsonl
from mmdora.prepare.run import run
from mmdora.records.record import Record

NAME = "folder"
LICENCE = "yours"
SOURCE = "your own table of image, question, answer (data_prep/folder.py)"
UNVERIFIED = ()


def prepare(out: Path, *, inputs: ImageInputs) -> dict[str, int]:
    """Your own images with a table (.csv, .tsv, .jsonl, .json) of image, question, answer.

    Example: `mmdora prep folder --in questions.csv --images photos --out data/mine`

    Parameters
    ----------
    out
        Folder for a file per split, dataset_card.json and report.html.
    """
    return run(out, __name__, inputs, rows, records, split="train")


def rows(read: Reader, files: list[Path]) -> Iterator[Row]:
    for path in files:
        yield from read.rows(path)


def records(row: Row) -> Iterator[Record]:
    value = row.value
    name = value.get("id") or f"{row.file.stem}-{row.number}"
    pictures = [value["image"]] if value.get("image") else []
    record = asked(name, pictures, value["question"], value.get("answer") or None, id=name)
    yield record | ({"split": value["split"]} if value.get("split") else {})


def write_results(records: Iterable[Record], predictions: Mapping[str, str], path: Path) -> Path:
    """JSON Lines of `{id, answer}`."""
    return write_jsonl(path, ({"id": m["id"], "answer": text} for m, text in answered(records, predictions)))
