"""easy-VQA (Victor Zhou, 2019): one coloured shape per picture, questions with 13 answers.

The PyPI package `easy-vqa` holds the whole dataset: 4,000 pictures with 38,575 questions to train on, and 1,000
pictures with 9,673 questions to test on. Pictures are 64x64 RGB PNG. `questions.json` is a list of `[question, answer,
image_id]` (checked against version 1.0). Pictures and questions are made from templates, so that the most frequent
answer to each question is right for 67.0% of the test split (see `mmdora.evaluate.scoring.metrics.majority_baseline`).
"""

from __future__ import annotations

import importlib.util
import json
from collections import defaultdict
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import Any

from mmdora.errors import MmdoraError
from mmdora.prepare import pictures
from mmdora.prepare.dataset import Dataset, Origin
from mmdora.prepare.run import write_splits
from mmdora.records.record import Record, qa_record
from mmdora.records.row import Row, row_of


def prepare(out: Path) -> dict[str, int]:
    """Write `train.jsonl`, `test.jsonl`, `images/{train,test}/`, card and report.

    Returns the number of records per split.

    Parameters
    ----------
    out
        Folder for a file per split, dataset_card.json and report.html.
    """
    spec = importlib.util.find_spec("easy_vqa")
    if spec is None or spec.origin is None:
        raise MmdoraError("easy-VQA is not installed; pip install easy-vqa")
    return write_splits(out, DATASET, partial(_make, Path(spec.origin).parent / "data", out))


def _make(package: Path, out: Path) -> dict[str, list[Record]]:
    splits = {}
    for split in ("train", "test"):
        for picture in sorted((package / split / "images").iterdir()):
            pictures.save(out, f"images/{split}/{picture.name}", picture.read_bytes())
        rows = json.loads((package / split / "questions.json").read_text(encoding="utf-8"))
        splits[split] = _by_image(rows) if split == "train" else _by_question(rows)
    return splits


def _by_image(rows: list[list[Any]]) -> list[Record]:
    turns = defaultdict(list)
    for question, answer, image in rows:
        turns[image].append((question, answer))
    return [qa_record(f"train-{image}", f"images/train/{image}.png", pairs) for image, pairs in turns.items()]


def _by_question(rows: list[list[Any]]) -> list[Record]:
    return [
        qa_record(f"test-{number}", f"images/test/{image}.png", [(question, answer)])
        for number, (question, answer, image) in enumerate(rows)
    ]


def samples(count: int = 6) -> list[tuple[Path, str]]:
    """`count` pictures of the test split with a question each; no picture and no question comes twice.

    Every call returns the same samples. There are at most 107, because there are 107 different questions.
    """
    folder = Path(str(files("easy_vqa"))) / "data" / "test"
    chosen: dict[int, str] = {}
    for question, _, image in json.loads((folder / "questions.json").read_text(encoding="utf-8"))[::7]:
        if len(chosen) < count and image not in chosen and question not in chosen.values():
            chosen[image] = question
    return [(folder / "images" / f"{image}.png", question) for image, question in chosen.items()]


def test_rows() -> list[Row]:
    """The questions of the test split with the pictures where the package has them, in the order of `prepare`."""
    folder = Path(str(files("easy_vqa"))) / "data" / "test"
    records = _by_question(json.loads((folder / "questions.json").read_text(encoding="utf-8")))
    return [row_of({**record, "images": [Path(record["images"][0]).name]}, folder / "images") for record in records]


DATASET = Dataset(
    name="easy-vqa",
    summary="easy-VQA: one coloured shape per picture, 13 answers",
    details=(
        "Takes the pictures from the package easy-vqa, so there is no file to give. In train.jsonl a record is a "
        "picture with its questions as turns, in test.jsonl one question."
    ),
    example="--out data/easy-vqa",
    origin=Origin(licence="MIT", source="https://pypi.org/project/easy-vqa/"),
    make=prepare,
)
