"""MMBench (Liu et al., 2023): multiple choice on 20 abilities, with images in base64 inside a TSV.

The columns are `index, question, hint, A, B, C, D, answer, category, image, source, l2-category, comment, split`. A
missing option, hint or (in the test split) answer is an empty cell or "nan". `image` is base64, or the index of the row
that holds the picture, since the rows of CircularEval share one. CCBench has the same columns. The result file is a
workbook (.xlsx) of `index, question, A, B, C, D, prediction, category, l2_category`.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from mmdora.errors import MmdoraError
from mmdora.prepare.dataset import Dataset, OfficialFiles, Origin, ResultFile
from mmdora.prepare.inputs import ImageInputs
from mmdora.prepare.read import OfficialRow, Reader
from mmdora.prepare.record import LETTERS, RecordDraft, choice
from mmdora.prepare.results import answered, check_openpyxl, write_xlsx
from mmdora.records.record import RecordFacts

LONGEST_REFERENCE = 64
"""The most characters of a cell that is the index of another row. A longer cell is a picture, as in VLMEvalKit."""


def rows(reader: Reader, inputs: ImageInputs) -> Iterator[OfficialRow]:
    """Yield the rows of TSV files; an `image` that is the index of another row is replaced by that row's picture."""
    for path in inputs.files:
        index = None
        for row in reader.table(path):
            cell = row.value.get("image", "") if isinstance(row.value, dict) else ""
            if cell and len(cell) <= LONGEST_REFERENCE:
                index = index or reader.index(_pictures(reader, path), "index", complete=False)
                row = row._replace(value=_borrowed(row.value, index.all(cell)))
            yield row


def _pictures(reader: Reader, path: Path) -> Iterator[OfficialRow]:
    """Yield the rows of a TSV file that hold a picture themselves."""
    for row in reader.table(path):
        if isinstance(row.value, dict) and len(row.value["image"]) > LONGEST_REFERENCE:
            yield row


def _borrowed(value: dict[str, Any], owners: list[dict[str, Any]]) -> Any:
    if not owners:
        return MmdoraError(f"the image is that of row {value['image']}, which has none")
    return value | {"image": owners[0]["image"]}


def records(row: OfficialRow) -> Iterator[RecordDraft]:
    value = {key: "" if cell.strip().lower() in ("nan", "none") else cell for key, cell in row.value.items()}
    letters = [letter for letter in LETTERS if value.get(letter)]
    if letters != list(LETTERS[: len(letters)]):
        raise MmdoraError(f"the options {', '.join(letters)} have a gap; fill in the missing option")
    options = [value[letter] for letter in letters]
    answer = value.get("answer", "").strip()
    if answer and answer not in LETTERS[: len(options)]:
        raise MmdoraError(f"the answer {answer!r} is none of the {len(options)} options")
    try:
        picture = base64.b64decode(value["image"], validate=True)
    except binascii.Error:
        raise MmdoraError("the image is not base64") from None
    if not picture:
        raise MmdoraError("the row has no image")
    yield choice(
        value["index"],
        [picture],
        value["question"],
        options,
        LETTERS.index(answer) if answer else None,
        context=value.get("hint", ""),
        index=int(float(value["index"])),
        hint=value.get("hint") or None,
        type=value.get("category") or None,
        l2_category=value.get("l2-category") or None,
    )


def write_results(records: Iterable[RecordFacts], predictions: Mapping[str, str], path: Path) -> Path:
    """Write the workbook that the evaluation server reads."""
    head = ("index", "question", "A", "B", "C", "D", "prediction", "category", "l2_category")
    rows = (
        (m["index"], m["question"], *(m["choices"] + [""] * 4)[:4], text, m.get("type", ""), m.get("l2_category", ""))
        for m, text in answered(records, predictions)
    )
    return write_xlsx(path, (row for part in ([head], rows) for row in part))


DATASET = Dataset(
    name="mmbench",
    summary="MMBench: multiple choice on 20 abilities",
    details="Give its TSV files; their pictures go to images/ below OUT or, with --pack, into the records.",
    example="--in mmbench_dev_en_20231003.tsv --out data/mmbench",
    origin=Origin(
        licence="Apache-2.0; images of several sources",
        source=(
            "https://github.com/open-compass/MMBench README.md (fields, result); VLMEvalKit "
            "vlmeval/dataset/image_base.py"
        ),
        unverified=("the licence: no statement of its owners was at hand",),
    ),
    files=OfficialFiles(ImageInputs, rows, records),
    results=ResultFile("results.xlsx", write_results, check_openpyxl),
)
