"""Finds the questions that can be asked at once: a named file's, what a model's run held out, or easy-VQA's test split.

Without Gradio.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from mmdora.config import load_config
from mmdora.config.data import TaskData
from mmdora.data_prep import easy_vqa
from mmdora.errors import MmdoraError
from mmdora.evaluate.scoring.metrics import question_text
from mmdora.evaluate.source import TaskRecords, find
from mmdora.evaluate.tasks import Task, task_of
from mmdora.models.locate import RUN_CONFIG, Location
from mmdora.records.images import FileRef
from mmdora.records.reader import Records
from mmdora.records.row import Row, videos_of

STRIDE = 7  # Every seventh row is looked at for an example, because rows beside each other are often about one picture.
PLACE = re.compile(r"[0-9]{1,3}:[0-9]{1,9}")
EXAMPLES = 6  # Most examples on the page: three rows of two beside the question.


@dataclass(frozen=True)
class QuestionSet:
    """Questions, and how they are worded and scored.

    Attributes:
        rows: the rows; a row is read when it is asked for.
    """

    name: str
    task: Task
    rows: Sequence[Row]


class Known:
    """Finds rows of some sets by id and question, as the predictions of an evaluation name them.

    Both are needed, because the rows of another file may have the same ids. Where a row lies is told as SET:ROW, two
    numbers, which may come back from a browser.
    """

    def __init__(self, sets: Sequence[QuestionSet]):
        self.sets = sets

    @cached_property
    def _places(self) -> dict[str, tuple[int, int]]:
        places: dict[str, tuple[int, int]] = {}
        for number, chosen in enumerate(self.sets):
            rows = chosen.rows
            ids = rows.ids.to_pylist() if isinstance(rows, Records) else [row["id"] for row in rows]
            for index, own in enumerate(ids):
                places.setdefault(str(own), (number, index))
        return places

    def place(self, own: str, question: str) -> str | None:
        """Where the row with this id and question lies; None if it is in no set."""
        if own not in self._places:
            return None
        number, index = self._places[own]
        return f"{number}:{index}" if question_text(self.sets[number].rows[index]) == question else None

    def row(self, place: str) -> tuple[Task, Row] | None:
        """The row at a place, with the task by which it is asked; None if there is no such place."""
        if not PLACE.fullmatch(place):
            return None
        number, index = map(int, place.split(":"))
        if number >= len(self.sets) or index >= len(self.sets[number].rows):
            return None
        return self.sets[number].task, self.sets[number].rows[index]


def question_sets(given: Path | None, locations: Iterable[Location]) -> list[QuestionSet]:
    """The sets that a page offers, the default first.

    Args:
        given: records, or a folder of `mmdora prep`, that the operator named; None to look at the models' runs.
        locations: where the page's models lie.

    Raises:
        MmdoraError: if `given` cannot be read, or its task is answered by likelihood.
    """
    if given is not None:
        return [_named(given.name, find(given))]
    held_out: dict[str, QuestionSet] = {}
    for run in dict.fromkeys(location.run for location in locations if location.run is not None):
        for source in load_config(run / RUN_CONFIG).data.sources.values():
            if (found := _held_out(source)) is not None:
                held_out.setdefault(str(source.eval or source.train), _named(source.train.parent.name, found))
    return list(held_out.values()) or [QuestionSet("easy-VQA: test", task_of("easy-vqa"), easy_vqa.test_rows())]


def examples_of(rows: Sequence[Row], count: int = EXAMPLES) -> list[tuple[FileRef, str]]:
    """Pictures with a question each, of rows about one picture; no picture and no question comes twice."""
    chosen: dict[FileRef, str] = {}
    for start in range(STRIDE):
        for index in range(start, len(rows), STRIDE):
            if len(chosen) == count:
                return list(chosen.items())
            row = rows[index]
            question = question_text(row)
            if (
                len(row["images"]) == 1
                and not videos_of(row)
                and row["images"][0] not in chosen
                and question not in chosen.values()
            ):
                chosen[row["images"][0]] = question
    return list(chosen.items())


def _named(name: str, found: TaskRecords) -> QuestionSet:
    if found.task.options is not None:
        raise MmdoraError(f"task {found.task.name}: its options are compared by likelihood; score it with mmdora eval")
    return QuestionSet(f"{name}: {found.split}", found.task, found.records)  # pyright: ignore[reportArgumentType]


def _held_out(source: TaskData) -> TaskRecords | None:
    """What a run did not train on: its own `eval` file, or another split in the folder of its records; None if gone."""
    try:
        if source.eval is not None:
            return find(source.eval, source.eval_task if source.eval_task != "exact" else None, images=source.images)
        found = find(source.train.parent, images=source.images)
    except MmdoraError:  # A run may be looked at where its data are not.
        return None
    return None if found.split == source.train.stem or found.task.options is not None else found
