"""OK-VQA (Marino et al., 2019): questions on COCO images that need knowledge, in VQA's format.

Questions and annotations are as in VQA v2, but each answer has a `raw_answer` beside the stemmed `answer`, and there is
no `multiple_choice_answer`, so a record's answer is the most frequent one. Images are
`train2014/COCO_train2014_…jpg` below the root, or lie there without the folder. The result file is
`[{question_id, answer}]`.
"""

from __future__ import annotations

from collections.abc import Iterator

from mmdora.prepare.dataset import Dataset, OfficialFiles, Origin, ResultFile
from mmdora.prepare.inputs import ImageInputs
from mmdora.prepare.joins import questions_with_annotations
from mmdora.prepare.read import OfficialRow
from mmdora.prepare.record import RecordDraft, asked, most_common
from mmdora.prepare.results import answers_by_question


def records(row: OfficialRow) -> Iterator[RecordDraft]:
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


DATASET = Dataset(
    name="okvqa",
    summary="OK-VQA: questions on COCO images that need knowledge",
    details="Give questions and annotations, which are in VQA's format.",
    example=(
        "--in OpenEnded_mscoco_val2014_questions.json mscoco_val2014_annotations.json --images coco --out data/okvqa"
    ),
    origin=Origin(
        licence="not stated by its owners; images: COCO's terms of use",
        source="https://okvqa.allenai.org/download.html; GT-Vision-Lab/VQA PythonHelperTools/vqaTools/vqa.py",
        unverified=("raw_answer and the missing multiple_choice_answer: no official annotation file was at hand",),
    ),
    files=OfficialFiles(ImageInputs, questions_with_annotations, records),
    results=ResultFile("results.json", answers_by_question),
)
