"""OK-VQA (Marino et al., 2019): questions on COCO images that need knowledge; VQA's format.

Questions and annotations as in VQA v2; each answer has `raw_answer` and `answer` (stemmed), and there
is no `multiple_choice_answer`: the most frequent answer is the record's. Images:
`train2014/COCO_train2014_…jpg` below the root, or without the folder. Result: `[{question_id, answer}]`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from mmdora.prepare.inputs import ImageInputs
from mmdora.prepare.joins import questions_with_annotations
from mmdora.prepare.read import Reader, Row
from mmdora.prepare.record import asked, most_common
from mmdora.prepare.results import answered, write_json
from mmdora.prepare.run import run
from mmdora.records.record import Record

NAME = "okvqa"
LICENCE = "not stated by its owners; images: COCO's terms of use"
SOURCE = "https://okvqa.allenai.org/download.html; GT-Vision-Lab/VQA PythonHelperTools/vqaTools/vqa.py"
UNVERIFIED = ("raw_answer and the missing multiple_choice_answer: no official annotation file was at hand",)


def prepare(out: Path, *, inputs: ImageInputs) -> dict[str, int]:
    """OK-VQA: questions and annotations in VQA's format.

    Example: `mmdora prep okvqa --in OpenEnded_mscoco_val2014_questions.json mscoco_val2014_annotations.json
    --images coco --out data/okvqa`

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
    answers = [answer["answer"] for answer in annotation["answers"]] if annotation else None
    image = f"COCO_{subset}_{question['image_id']:012d}.jpg"
    yield asked(
        question["question_id"],
        [(f"{subset}/{image}", image)],
        question["question"],
        most_common(answers) if answers else None,
        question_id=question["question_id"],
        image_id=question["image_id"],
        type=annotation.get("question_type") if annotation else None,
        answers=answers,
        raw_answers=[answer.get("raw_answer") for answer in annotation["answers"]] if annotation else None,
    )


def write_results(records: Iterable[Record], predictions: Mapping[str, str], path: Path) -> Path:
    """`[{question_id, answer}]`, what VQA's official scorer takes."""
    rows = ({"question_id": m["question_id"], "answer": text} for m, text in answered(records, predictions))
    return write_json(path, rows)
