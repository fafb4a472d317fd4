"""TextVQA (Singh et al., 2019): questions about text in Open Images photographs, ten answers each.

`{data: [{question, question_id, image_id, image_classes, image_width, image_height,
flickr_original_url, flickr_300k_url, answers: [ten texts], set_name, question_tokens}]}`; the test
split has no answers. Images: `train_images/IMAGEID.jpg` (train and val) or `test_images/`, or without the
folder. OCR tokens (`TextVQA_Rosetta_OCR_v0.2_val.json`: `{data: [{image_id, ocr_tokens}]}`) named in
`--in` go into `meta.ocr_tokens`, for LLaVA-1.5's prompt. Result: `[{question_id, answer}]`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from mmdora.prepare.inputs import ImageInputs
from mmdora.prepare.joins import field
from mmdora.prepare.read import Reader, Row
from mmdora.prepare.record import asked, most_common
from mmdora.prepare.results import answered, write_json
from mmdora.prepare.run import run
from mmdora.records.record import Record

NAME = "textvqa"
LICENCE = "CC BY 4.0; images CC BY 2.0 (Open Images)"
SOURCE = "https://textvqa.org/dataset; LLaVA llava/eval/eval_textvqa.py, scripts/v1_5/eval/textvqa.sh (images)"
UNVERIFIED = (
    "the fields of the Rosetta OCR file: third-party loaders read them so, no official file was at hand",
    "the server's result format, taken to be VQA's",
    "the licence: no statement of its owners was at hand",
)


def prepare(out: Path, *, inputs: ImageInputs) -> dict[str, int]:
    """TextVQA 0.5.1, with the Rosetta OCR files if they are given.

    Example: `mmdora prep textvqa --in TextVQA_0.5.1_val.json --images textvqa --out data/textvqa`

    Parameters
    ----------
    out
        Folder for a file per split, dataset_card.json and report.html.
    """
    return run(out, __name__, inputs, rows, records)


def rows(read: Reader, files: list[Path]) -> Iterator[Row]:
    """(question, OCR of its image or None)."""
    ocr = [path for path in files if "ocr" in path.name.lower()]
    tokens = [read.index(read.elements(path, "data"), "image_id", complete=False) for path in ocr]
    for path in files:
        if path in ocr:
            continue
        for row in read.elements(path, "data"):
            found = [entry for index in tokens for entry in index.all(field(row.value, "image_id"))]
            yield row._replace(value=(row.value, found[0] if found else None))


def records(row: Row) -> Iterator[Record]:
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


def write_results(records: Iterable[Record], predictions: Mapping[str, str], path: Path) -> Path:
    """`[{question_id, answer}]`."""
    rows = ({"question_id": m["question_id"], "answer": text} for m, text in answered(records, predictions))
    return write_json(path, rows)
