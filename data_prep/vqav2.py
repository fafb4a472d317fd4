"""VQA v2 (Goyal et al., 2017): open questions on COCO images, ten answers each.

Questions are `{data_subtype, questions: [{image_id, question, question_id}]}`, annotations `{annotations:
[{question_id, image_id, question_type, answer_type, multiple_choice_answer, answers: [{answer, answer_confidence,
answer_id}]}]}`. Test sets have no annotations, and their records no answer. Images are
`train2014/COCO_train2014_000000000009.jpg` below the root, or lie there without the folder. The result file is
`[{question_id, answer}]`.
"""

from __future__ import annotations

from collections.abc import Iterator

from mmdora.prepare.dataset import Dataset, OfficialFiles, Origin, ResultFile
from mmdora.prepare.inputs import ImageInputs
from mmdora.prepare.joins import questions_with_annotations
from mmdora.prepare.read import OfficialRow
from mmdora.prepare.record import RecordDraft, asked
from mmdora.prepare.results import answers_by_question


def records(row: OfficialRow) -> Iterator[RecordDraft]:
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


DATASET = Dataset(
    name="vqav2",
    summary="VQA v2: open questions on COCO images",
    details="Give questions and, except for test sets, annotations.",
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
    ),
    files=OfficialFiles(ImageInputs, questions_with_annotations, records),
    results=ResultFile("results.json", answers_by_question),
)
