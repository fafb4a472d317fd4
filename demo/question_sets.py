"""Finds the questions that can be asked at once: a named file's, what a model's run held out, or easy-VQA's test split.

Without Gradio.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
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
from mmdora.records.row import Row, videos_of

STRIDE = 7  # Every seventh row is looked at for an example, because rows beside each other are often about one picture.
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
