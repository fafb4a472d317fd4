"""POPE (Li et al., 2023): yes/no questions whether a thing is in the image, in three splits.

The files are JSON Lines, though they are named .json, of `{question_id, image, text, label: yes|no}`; their names,
`coco_pope_random.json`, `_popular` and `_adversarial`, tell the splits. The splits have the same ids. Images are COCO's
val2014, below the root directly or in `val2014/`. The result file is JSON Lines of `{question, answer}` in the order of
the questions.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from mmdora.errors import MmdoraError
from mmdora.prepare.dataset import Dataset, OfficialFiles, Origin, ResultFile
from mmdora.prepare.inputs import ImageInputs
from mmdora.prepare.read import OfficialRow
from mmdora.prepare.record import RecordDraft, asked
from mmdora.prepare.results import answered, write_jsonl
from mmdora.prepare.rows import json_lines
from mmdora.records.record import RecordFacts


def records(row: OfficialRow) -> Iterator[RecordDraft]:
    value = row.value
    if value["label"] not in ("yes", "no"):
        raise MmdoraError(f"the label {value['label']!r} is neither yes nor no")
    strategy = row.file.stem.rpartition("_")[2]
    record = asked(
        f"{strategy}-{value['question_id']}",
        [(value["image"], f"val2014/{value['image']}")],
        value["text"],
        value["label"],
        question_id=value["question_id"],
        question=value["text"],
        type=strategy,
    )
    yield {**record, "split": strategy}


def write_results(records: Iterable[RecordFacts], predictions: Mapping[str, str], path: Path) -> Path:
    """Write JSON Lines of `{question, answer}`, which `evaluate.py` reads for one split."""
    rows = ({"question": meta["question"], "answer": text} for meta, text in answered(records, predictions))
    return write_jsonl(path, rows)


DATASET = Dataset(
    name="pope",
    summary="POPE: whether something is in the image",
    details="Give its question files; random, popular and adversarial become a file each.",
    example=(
        "--in coco_pope_random.json coco_pope_popular.json coco_pope_adversarial.json --images coco/val2014 "
        "--out data/pope"
    ),
    origin=Origin(
        licence="MIT; images: COCO's terms of use",
        source="https://github.com/AoiDragon/POPE README.md (fields), evaluate.py (result)",
    ),
    files=OfficialFiles(ImageInputs, json_lines, records),
    results=ResultFile("results.jsonl", write_results),
)
