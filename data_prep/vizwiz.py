"""VizWiz-VQA (Gurari et al., 2018): questions that blind people asked about their photographs, with ten answers each.

A file is a JSON list of `{image, question, answers: [{answer, answer_confidence}], answer_type, answerable}`; the test
split has image and question only. The name of the image is the id. Images are `train/NAME`, `val/NAME` or `test/NAME`
below the root, or lie there without the folder. The result file is `[{image, answer}]`. The file of the answerability
task is not written, because it asks for a confidence, which a generated answer does not have.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from mmdora.prepare.dataset import Dataset, OfficialFiles, Origin, ResultFile
from mmdora.prepare.inputs import ImageInputs
from mmdora.prepare.read import OfficialRow, split_of
from mmdora.prepare.record import RecordDraft, asked, most_common
from mmdora.prepare.results import answered, write_json_list
from mmdora.prepare.rows import json_elements
from mmdora.records.record import RecordFacts


def records(row: OfficialRow) -> Iterator[RecordDraft]:
    value = row.value
    image = value["image"]
    folder = split_of(row.file)
    answers = [answer["answer"] for answer in value["answers"]] if "answers" in value else None
    yield asked(
        image,
        [(f"{folder}/{image}", image) if folder else image],
        value["question"],
        most_common(answers) if answers else None,
        image=image,
        answers=answers,
        confidences=[answer["answer_confidence"] for answer in value["answers"]] if answers else None,
        type=value.get("answer_type"),
        answerable=value.get("answerable"),
    )


def write_results(records: Iterable[RecordFacts], predictions: Mapping[str, str], path: Path) -> Path:
    """Write `[{image, answer}]`, which the evaluation server reads."""
    rows = ({"image": meta["image"], "answer": text} for meta, text in answered(records, predictions))
    return write_json_list(path, rows)


DATASET = Dataset(
    name="vizwiz",
    summary="VizWiz-VQA: blind people's questions about their photos",
    details="Give train.json, val.json or test.json.",
    example="--in val.json --images vizwiz --out data/vizwiz",
    origin=Origin(
        licence="CC BY 4.0",
        source="https://vizwiz.org/tasks-and-datasets/vqa/; LLaVA scripts/convert_vizwiz_for_submission.py (result)",
        unverified=("the licence: no statement of its owners was at hand",),
    ),
    files=OfficialFiles(ImageInputs, json_elements, records),
    results=ResultFile("results.json", write_results),
)
