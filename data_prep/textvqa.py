"""TextVQA (Singh et al., 2019): questions about text in Open Images photographs, ten answers each.

A file is `{data: [{question, question_id, image_id, image_classes, image_width, image_height, flickr_original_url,
flickr_300k_url, answers: [ten texts], set_name, question_tokens}]}`; the test split has no answers. Images are
`train_images/IMAGEID.jpg` (for train and val) or `test_images/IMAGEID.jpg` below the root, or lie there without the
folder. A file of OCR tokens (`TextVQA_Rosetta_OCR_v0.2_val.json`: `{data: [{image_id, ocr_tokens}]}`) among those of
`--in` fills `meta.ocr_tokens`, which LLaVA-1.5's prompt shows. The result file is `[{question_id, answer}]`.
"""

from __future__ import annotations

from collections.abc import Iterator

from mmdora.prepare.dataset import Dataset, OfficialFiles, Origin, ResultFile
from mmdora.prepare.inputs import ImageInputs
from mmdora.prepare.joins import field
from mmdora.prepare.read import OfficialRow, Reader
from mmdora.prepare.record import RecordDraft, asked, most_common
from mmdora.prepare.results import answers_by_question


def rows(reader: Reader, inputs: ImageInputs) -> Iterator[OfficialRow]:
    """Yield (question, the entry of its image in the OCR file or None)."""
    ocr = [path for path in inputs.files if "ocr" in path.name.lower()]
    tokens = [reader.index(reader.elements(path, "data"), "image_id", complete=False) for path in ocr]
    for path in inputs.files:
        if path in ocr:
            continue
        for row in reader.elements(path, "data"):
            entries = [entry for index in tokens for entry in index.all(field(row.value, "image_id"))]
            yield row._replace(value=(row.value, entries[0] if entries else None))


def records(row: OfficialRow) -> Iterator[RecordDraft]:
    value, ocr = row.value
    image = f"{value['image_id']}.jpg"
    answers = value.get("answers")
    yield asked(
        value["question_id"],
        [(f"train_images/{image}", f"test_images/{image}", image)],
        value["question"],
        most_common(answers) if answers else None,
        question_id=value["question_id"],
        image_id=value["image_id"],
        answers=answers,
        ocr_tokens=ocr["ocr_tokens"] if ocr else None,
    )


DATASET = Dataset(
    name="textvqa",
    summary="TextVQA: questions about text in photographs",
    details="Give files of version 0.5.1 and, for the OCR tokens in LLaVA-1.5's prompt, the Rosetta OCR files.",
    example="--in TextVQA_0.5.1_val.json --images textvqa --out data/textvqa",
    origin=Origin(
        licence="CC BY 4.0; images CC BY 2.0 (Open Images)",
        source="https://textvqa.org/dataset; LLaVA llava/eval/eval_textvqa.py, scripts/v1_5/eval/textvqa.sh (images)",
        unverified=(
            "the fields of the Rosetta OCR file: third-party loaders read them so, no official file was at hand",
            "the server's result format, taken to be VQA's",
            "the licence: no statement of its owners was at hand",
        ),
    ),
    files=OfficialFiles(ImageInputs, rows, records),
    results=ResultFile("results.json", answers_by_question),
)
