"""VQA v2 (Goyal et al., 2017): open questions on COCO images, ten answers each.

Questions are `{data_subtype, questions: [{image_id, question, question_id}]}`, annotations `{annotations:
[{question_id, image_id, question_type, answer_type, multiple_choice_answer, answers: [{answer, answer_confidence,
answer_id}]}]}`. Test sets have no annotations, and their records no answer. Images are
`train2014/COCO_train2014_000000000009.jpg` below the root, or lie there without the folder. In data of
your own, `image` (or a text as `image_id`) is the path of the picture, and `data_subtype` a name that questions and
annotations share. The result file is `[{question_id, answer}]`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from mmdora.prepare.dataset import Dataset, OfficialFiles, Origin, ResultFile
from mmdora.prepare.inputs import OwnInputs
from mmdora.prepare.joins import questions_with_annotations
from mmdora.prepare.read import OfficialRow
from mmdora.prepare.record import Picture, RecordDraft, asked
from mmdora.prepare.results import answers_by_question


def records(row: OfficialRow) -> Iterator[RecordDraft]:
    subset, question, annotation = row.value
    note = annotation or {}
    yield asked(
        question["question_id"],
        [_picture(subset, question)],
        question["question"],
        note.get("multiple_choice_answer"),
        question_id=question["question_id"],
        image_id=question.get("image_id"),
        question_type=note.get("question_type"),
        type=note.get("answer_type"),
        answers=[answer["answer"] for answer in note["answers"]] if note else None,
    )


def _picture(subset: str, question: Mapping[str, Any]) -> Picture:
    """The file that a question is about: the one it names, or that of its number in COCO."""
    named = question.get("image") or question["image_id"]
    if isinstance(named, str):
        return named
    folder = "test2015" if subset.startswith("test") else subset
    file = f"COCO_{folder}_{named:012d}.jpg"
    return f"{folder}/{file}", file


DATASET = Dataset(
    name="vqav2",
    summary="VQA v2, and your own files in its layout",
    details=(
        "Give questions and, except for test sets, annotations. Questions of your own name their picture as image (a "
        "path below --images), where those of VQA v2 have COCO's number as image_id."
    ),
    example=(
        "--in v2_OpenEnded_mscoco_val2014_questions.json v2_mscoco_val2014_annotations.json --images coco "
        "--out data/vqav2"
    ),
    origin=Origin(
        licence="CC BY 4.0 (annotations); images: COCO's terms of use",
        source=(
            "https://visualqa.org/download.html (formats); GT-Vision-Lab/VQA "
            "PythonHelperTools/vqaTools/vqa.py; GT-Vision-Lab/VQA-Website terms.html (licence)"
        ),
        owned=("v2_OpenEnded_mscoco_*.json", "v2_mscoco_*.json"),
    ),
    files=OfficialFiles(OwnInputs, questions_with_annotations, records),
    results=ResultFile("results.json", answers_by_question),
)
