"""easy-VQA (Victor Zhou, 2019): one coloured shape per picture, questions with 13 answers.

The PyPI package `easy-vqa` carries it whole: 4,000 pictures with 38,575 questions to train on and
1,000 with 9,673 to test on, 64x64 RGB PNG. `questions.json` is a list of
`[question, answer, image_id]` (checked against version 1.0). Pictures are synthetic; the questions
are templates; the question alone gives 67.0% (see `mmdora.evaluate.scoring.metrics.majority_baseline`).
"""

from __future__ import annotations

import importlib.util
import json
import shutil
import sys
from collections import defaultdict
from importlib.resources import files
from pathlib import Path
from typing import Any

from mmdora.errors import MmdoraError
from mmdora.prepare.run import write_splits
from mmdora.records.record import qa_record

NAME = "easy-vqa"
LICENCE = "MIT"
SOURCE = "https://pypi.org/project/easy-vqa/"
UNVERIFIED = ()


def prepare(out: Path) -> dict[str, int]:
    """Write `train.jsonl` (a record per picture, its questions as turns), `test.jsonl` (a record per
    question), `images/{train,test}/`, card and report below `out`; return the number of records in each.
    """
    spec = importlib.util.find_spec("easy_vqa")
    if spec is None or spec.origin is None:
        raise MmdoraError("easy-VQA is not installed; pip install easy-vqa")
    package = Path(spec.origin).parent / "data"
    splits = {}
    for split in ("train", "test"):
        shutil.copytree(package / split / "images", out / "images" / split, dirs_exist_ok=True)
        rows = json.loads((package / split / "questions.json").read_text(encoding="utf-8"))
        splits[split] = _by_image(rows) if split == "train" else _by_question(rows)
    return write_splits(out, sys.modules[__name__], splits)


def _by_image(rows: list[list[Any]]) -> list[dict[str, Any]]:
    turns = defaultdict(list)
    for question, answer, image in rows:
        turns[image].append((question, answer))
    return [qa_record(f"train-{image}", f"images/train/{image}.png", pairs) for image, pairs in turns.items()]


def _by_question(rows: list[list[Any]]) -> list[dict[str, Any]]:
    return [
        qa_record(f"test-{number}", f"images/test/{image}.png", [(question, answer)])
        for number, (question, answer, image) in enumerate(rows)
    ]


def samples(count: int = 6) -> list[tuple[Path, str]]:
    """Pictures and questions, none twice, the same at every call (at most 107 questions are different)."""
    folder = Path(str(files("easy_vqa"))) / "data" / "test"
    chosen: dict[int, str] = {}
    for question, _, image in json.loads((folder / "questions.json").read_text(encoding="utf-8"))[::7]:
        if len(chosen) < count and image not in chosen and question not in chosen.values():
            chosen[image] = question
    return [(folder / "images" / f"{image}.png", question) for image, question in chosen.items()]
