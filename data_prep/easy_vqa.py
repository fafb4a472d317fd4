"""easy-VQA (Victor Zhou, 2019): one coloured shape per picture, questions with 13 answers.

The PyPI package `easy-vqa` carries it whole: 4,000 pictures with 38,575 questions to train on and
1,000 with 9,673 to test on, 64x64 RGB PNG. `questions.json` is a list of
`[question, answer, image_id]` (checked against version 1.0). Pictures are synthetic; the questions
are templates; the question alone gives 67.0% (see `mmdora.evaluate.metrics.majority_baseline`).
"""

from __future__ import annotations

import importlib.util
import json
import shutil
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

from mmdora.data.prepare.run import write_splits
from mmdora.data.record import qa_record
from mmdora.errors import MmdoraError

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
