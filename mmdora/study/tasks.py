"""The tasks of the studies, with as many rows and steps as leave LoRA between 40 and 95% of the answers.

They were chosen by a pilot with LoRA of rank 8: a cell had to take less than a minute of one core. What a base of two
million parameters does not learn in that time was left out. tiny-llava stayed at chance on handwritten digits (36%
after 320 steps of 8), relations (48%), statements about two pictures (53%) and words (0%), at 9% of the full captions
and below its own start at counting; tiny-vlbart at chance on relations (53%) and at 0% of the captions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from mmdora.data_prep import easy_vqa, openmoji, scenes
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
        pictures: the most pictures of the test split.
        validation_pictures: the most of the validation split, which only has to tell rates apart.
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
    pictures: int = 180
    validation_pictures: int = 80
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


def _is_yes_or_no(row: Row) -> bool:
    return answer_text(row).lower() in ("yes", "no")


def _is_not_yes_or_no(row: Row) -> bool:
    return not _is_yes_or_no(row)


def _is_about_a_shape(row: Row) -> bool:
    """Not how many things there are in all, which the bundled bases know."""
    return row["meta"]["type"] == "shape"


def _drawn(kind: scenes.Kind, rows: int = 2000, held_out: int = 500) -> Callable[[Path], Any]:
    return partial(scenes.prepare, kind=kind, rows=rows, held_out=held_out)


_OTHER = StudyTask(
    "easy-vqa-other", "easy-VQA: the questions that are not yes or no", "easy-vqa", "easy-vqa", easy_vqa.prepare,
    rows=1500, steps=6, asks=_is_not_yes_or_no,
)  # fmt: skip
_NAMES = StudyTask(
    "names", "drawn scenes: colours and shapes of up to four things, from left to right", "scenes", "names",
    _drawn("names"), rows=1500, steps=12, batch_size=8,
)  # fmt: skip
_TASKS = (
    _OTHER,
    _NAMES,
    StudyTask(
        "easy-vqa-yes-no", "easy-VQA: the questions that are yes or no", "easy-vqa", "easy-vqa", easy_vqa.prepare,
        rows=1500, steps=30, batch_size=8, asks=_is_yes_or_no,
    ),
    StudyTask(
        "pope", "drawn scenes: is it there, in POPE's form", "scenes-pope", "pope", _drawn("pope", 500),
        rows=1500, steps=16, batch_size=8,
    ),
    StudyTask(
        "openmoji", "pictures drawn by people (OpenMoji), symbols not trained on: kind, number, colour", "openmoji",
        "openmoji", openmoji.prepare, rows=4000, steps=240, batch_size=8,
    ),
    StudyTask(
        "nlvr2", "drawn scenes: is a statement about two pictures true", "scenes-nlvr2", "nlvr2",
        _drawn("nlvr2", 400, 130), rows=1600, steps=30, pictures=250, validation_pictures=150,
    ),
    StudyTask(
        "count", "drawn scenes: how many things of a shape", "scenes-count", "count", _drawn("count"), rows=2000,
        steps=12, asks=_is_about_a_shape,
    ),
    replace(_OTHER, name="easy-vqa-other-12", about=f"{_OTHER.about}; 12 steps, near its ceiling at the best rate",
            steps=12),
    replace(_OTHER, name="easy-vqa-other-4", about=f"{_OTHER.about}; 4 steps, for a base that learns fast", steps=4),
    replace(_OTHER, name="easy-vqa-other-10%", about=f"{_OTHER.about}; a tenth of the rows", rows=150, steps=40),
    replace(_OTHER, name="easy-vqa-other-1%", about=f"{_OTHER.about}; one row of a hundred", rows=15, steps=40),
    replace(_NAMES, name="names-10%", about="the same names; a tenth of the rows", rows=150, steps=40),
    replace(_NAMES, name="names-1%", about="the same names; one row of a hundred", rows=15, steps=40),
)  # fmt: skip
RETAINED = StudyTask(
    "retained", "drawn scenes, asked as the bundled bases were while they were made", "scenes", "questions",
    _drawn("questions", 10, 200), rows=10, steps=1, pictures=40, validation_pictures=1,
)  # fmt: skip
"""The bases' own questions, by which it is seen how much of them a cell has forgotten."""
TASKS: Mapping[str, StudyTask] = {task.name: task for task in _TASKS}
