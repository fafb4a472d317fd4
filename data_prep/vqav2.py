"""VQA v2 (Goyal et al., 2017): open questions on COCO images, ten answers each.

Questions: `{data_subtype, questions: [{image_id, question, question_id}]}`. Annotations:
`{annotations: [{question_id, image_id, question_type, answer_type, multiple_choice_answer,
answers: [{answer, answer_confidence, answer_id}]}]}`; test sets have none, and their records no
answer. Images: `train2014/COCO_train2014_000000000009.jpg` below the root, or without the folder.
Result: `[{question_id, answer}]`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from mmdora.prepare.inputs import ImageInputs
from mmdora.prepare.joins import questions_with_annotations
from mmdora.prepare.read import Reader, Row
from mmdora.prepare.record import asked
from mmdora.prepare.results import answered, write_json
from mmdora.prepare.run import run
from mmdora.records.record import Record

NAME = "vqav2"
LICENCE = "CC BY 4.0 (annotations); images: COCO's terms of use"
SOURCE = (
    "https://visualqa.org/download.html (formats); GT-Vision-Lab/VQA PythonHelperTools/vqaTools/vqa.py; "
    "GT-Vision-Lab/VQA-Website terms.html (licence)"
)
UNVERIFIED = ()


def prepare(out: Path, *, inputs: ImageInputs) -> dict[str, int]:
    """VQA v2: questions and, but for test sets, annotations.

    Example: `mmdora prep vqav2 --in v2_OpenEnded_mscoco_val2014_questions.json v2_mscoco_val2014_annotations.json
    --images coco --out data/vqav2`

    Parameters
    ----------
    out
        Folder for a file per split, dataset_card.json and report.html.
    """
    return run(out, __name__, inputs, rows, records)


def rows(read: Reader, files: list[Path]) -> Iterator[Row]:
    """(data_subtype, question, annotation or None) of every question."""
    yield from questions_with_annotations(read, files)


def records(row: Row) -> Iterator[Record]:
    subset, question, annotation = row.value
    note = annotation or {}
    folder = "test2015" if subset.startswith("test") else subset
    image = f"COCO_{folder}_{question['image_id']:012d}.jpg"
    yield asked(
        question["question_id"],
        [(f"{folder}/{image}", image)],
        question["question"],
        note.get("multiple_choice_answer"),
        question_id=question["question_id"],
        image_id=question["image_id"],
        question_type=note.get("question_type"),
        type=note.get("answer_type"),
        answers=[answer["answer"] for answer in note["answers"]] if note else None,
    )


def write_results(records: Iterable[Record], predictions: Mapping[str, str], path: Path) -> Path:
    """`[{question_id, answer}]`, what the evaluation server and the official scorer take."""
    rows = ({"question_id": m["question_id"], "answer": text} for m, text in answered(records, predictions))
    return write_json(path, rows)
