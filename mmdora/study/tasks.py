"""The tasks of the studies, with as many rows and steps as leave LoRA between 40 and 95% of the answers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from mmdora.data_prep import digits, easy_vqa, openmoji, scenes
from mmdora.records.row import Row
from mmdora.records.turns import answer_text

WARMUP, SCHEDULE, LOG_EVERY = 0.05, "cosine", 20


@dataclass(frozen=True)
class StudyTask:
    """A task of a study.

    Attributes:
        name: name in a study's file, and in results.
        about: what it asks, for the report.
        task: task of `mmdora eval --list` by which it is asked and scored.
        data: name of its data; tasks that differ in rows or steps only have the same.
        prepare: writes the data below a folder: train.jsonl and test.jsonl, with no picture in both.
        rows: training questions.
        steps: optimizer steps.
        batch_size: questions per step.
        pictures: the most pictures of the validation split, and of the test split.
        asks: whether a row, with one question, belongs to the task.
    """

    name: str
    about: str
    task: str
    data: str
    prepare: Callable[[Path], Any]
    rows: int
    steps: int
    batch_size: int = 16
    pictures: int = 250
    asks: Callable[[Row], bool] = lambda row: True

    def training(self, rate: float, seed: int) -> dict[str, Any]:
        """The section `training` of a cell's config, without its run folder; with the rows, which decide it too."""
        return {
            "rows": self.rows,
            "steps": self.steps,
            "batch_size": self.batch_size,
            "lr": rate,
            "schedule": SCHEDULE,
            "warmup": WARMUP,
            "log_every": LOG_EVERY,
            "seed": seed,
        }


def _is_not_yes_or_no(row: Row) -> bool:
    return answer_text(row).lower() not in ("yes", "no")


def _is_about_a_shape(row: Row) -> bool:
    """Not how many things there are in all, which the bundled base knows."""
    return row["meta"]["type"] == "shape"


def _drawn(kind: scenes.Kind, rows: int = 2000, held_out: int = 500) -> Callable[[Path], Any]:
    return partial(scenes.prepare, kind=kind, rows=rows, held_out=held_out)


_DIGITS = StudyTask(
    "digits", "handwritten digits, real scans: which digit, even or not, is it this one", "digits", "digits",
    digits.prepare, rows=3600, steps=300,
)  # fmt: skip
_READ = StudyTask(
    "ocr", "drawn words of three or four letters, to be read", "scenes-ocr", "ocr", _drawn("ocr"), rows=2000,
    steps=300,
)  # fmt: skip
_TASKS = (
    _DIGITS,
    StudyTask(
        "count",
        "drawn scenes: how many things of a shape",
        "scenes-count",
        "count",
        _drawn("count"),
        rows=2000,
        steps=60,
        asks=_is_about_a_shape,
    ),
    StudyTask(
        "relation",
        "drawn scenes: is one thing left of, right of, above or below another",
        "scenes-relation",
        "relation",
        _drawn("relation"),
        rows=2000,
        steps=60,
    ),
    StudyTask(
        "caption",
        "drawn scenes: a caption of one to three things, word for word",
        "scenes-caption-exact",
        "caption",
        _drawn("caption"),
        rows=1500,
        steps=60,
    ),
    StudyTask(
        "nlvr2",
        "drawn scenes: is a statement about two pictures true",
        "scenes-nlvr2",
        "nlvr2",
        _drawn("nlvr2", 400, 130),
        rows=1600,
        steps=60,
    ),
    StudyTask(
        "easy-vqa-other",
        "easy-VQA: the questions that are not yes or no, after few steps",
        "easy-vqa",
        "easy-vqa",
        easy_vqa.prepare,
        rows=1500,
        steps=12,
        asks=_is_not_yes_or_no,
    ),
    StudyTask(
        "openmoji",
        "pictures drawn by people (OpenMoji), symbols not trained on: kind, number, colour",
        "openmoji",
        "openmoji",
        openmoji.prepare,
        rows=4000,
        steps=200,
    ),
    _READ,
    replace(_DIGITS, name="digits-10%", about="handwritten digits, a tenth of the scans", rows=360),
    replace(_DIGITS, name="digits-1%", about="handwritten digits, one scan of a hundred", rows=36, steps=100),
    replace(_READ, name="ocr-10%", about="drawn words, a tenth of the rows", rows=200),
    replace(_READ, name="ocr-1%", about="drawn words, one row of a hundred", rows=20, steps=60),
)
TASKS: Mapping[str, StudyTask] = {task.name: task for task in _TASKS}
