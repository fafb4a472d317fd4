"""VizWiz-VQA (Gurari et al., 2018): questions blind people asked about their photographs, ten answers each.

A JSON list of `{image, question, answers: [{answer, answer_confidence}], answer_type, answerable}`; the
test split has image and question only. The name of the image is the id. Images: `train/…`, `val/…`,
`test/…` below the root, or without the folder. Results: `[{image, answer}]`, and
`[{image, answerable}]` for the answerability task.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from mmdora.prepare.inputs import ImageInputs
from mmdora.prepare.read import Reader, Row
from mmdora.prepare.record import asked, most_common
from mmdora.prepare.results import answered, write_json
from mmdora.prepare.run import run
from mmdora.prepare.writer import split_of
from mmdora.records.record import Record

NAME = "vizwiz"
LICENCE = "CC BY 4.0"
SOURCE = "https://vizwiz.org/tasks-and-datasets/vqa/; LLaVA scripts/convert_vizwiz_for_submission.py (result)"
UNVERIFIED = (
    "the result file of the answerability task",
    "the licence: no statement of its owners was at hand",
)


def prepare(out: Path, *, inputs: ImageInputs) -> dict[str, int]:
    """VizWiz-VQA: train.json, val.json, test.json.

    Example: `mmdora prep vizwiz --in val.json --images vizwiz --out data/vizwiz`

    Parameters
    ----------
    out
        Folder for a file per split, dataset_card.json and report.html.
    """
    return run(out, __name__, inputs, rows, records)


def rows(read: Reader, files: list[Path]) -> Iterator[Row]:
    for path in files:
        yield from read.elements(path)


def records(row: Row) -> Iterator[Record]:
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


def write_results(records: Iterable[Record], predictions: Mapping[str, str], path: Path) -> Path:
    """`[{image, answer}]`."""
    rows = ({"image": meta["image"], "answer": text} for meta, text in answered(records, predictions))
    return write_json(path, rows)


def write_answerability(records: Iterable[Record], predictions: Mapping[str, str], path: Path) -> Path:
    """`[{image, answerable}]` with 0.0 where "unanswerable" was said and 1.0 elsewhere."""
    rows = (
        {"image": meta["image"], "answerable": float(text.rstrip(".").lower() != "unanswerable")}
        for meta, text in answered(records, predictions)
    )
    return write_json(path, rows)
