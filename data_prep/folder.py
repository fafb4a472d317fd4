"""A folder of your own with images and a table of `image, question, answer`.

The table is CSV, TSV, JSON Lines or a JSON list with the columns `image`, `question` and `answer`; columns `id` and
`split` are read if they are there. A row with an empty `image` is about text alone; one with an empty or missing
`answer` is still to be answered.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from mmdora.errors import MmdoraError
from mmdora.prepare.dataset import Dataset, OfficialFiles, Origin, ResultFile
from mmdora.prepare.inputs import OwnInputs
from mmdora.prepare.read import OfficialRow
from mmdora.prepare.record import RecordDraft, asked
from mmdora.prepare.results import answered, write_jsonl
from mmdora.prepare.rows import by_ending
from mmdora.records.media import check_keys
from mmdora.records.record import RecordFacts

KEYS = ("id", "image", "question", "answer", "split")
"""The columns that are read. Other columns are ignored, but may not hold pictures."""


def records(row: OfficialRow) -> Iterator[RecordDraft]:
    value = row.value
    check_keys(value, KEYS, ("image",))
    if "question" not in value:
        raise MmdoraError(f"no column 'question'; there are {', '.join(value) or 'none'}; known are {', '.join(KEYS)}")
    name = value.get("id") or f"{row.file.stem}-{row.number}"
    pictures = [value["image"]] if value.get("image") else []
    record = asked(name, pictures, value["question"], value.get("answer") or None, id=name)
    yield {**record, "split": value["split"]} if value.get("split") else record


def write_results(records: Iterable[RecordFacts], predictions: Mapping[str, str], path: Path) -> Path:
    """Write JSON Lines of `{id, answer}`."""
    return write_jsonl(path, ({"id": m["id"], "answer": text} for m, text in answered(records, predictions)))


DATASET = Dataset(
    name="folder",
    summary="Your own images with a table of questions and answers",
    details=(
        "Give a table (.csv, .tsv, .jsonl, .json, .parquet). Its columns: image (a path below --images; empty for text "
        "alone), question, answer (empty where it is still to be answered), split (train, test, or another name; "
        "default train), id (default: the number of the row). Other columns are ignored. Without a column split, "
        "--held-out 0.2 holds out a fifth of the pictures."
    ),
    example="--in questions.csv --images photos --held-out 0.2 --out data/mine",
    origin=Origin(
        licence="yours",
        source="your own table of image, question, answer (data_prep/folder.py)",
        owned=(),
    ),
    files=OfficialFiles(OwnInputs, by_ending, records, split="train"),
    results=ResultFile("results.jsonl", write_results),
)
