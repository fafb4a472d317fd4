"""Prints what `mmdora eval --list` shows. This module imports no torch."""

from __future__ import annotations

from mmdora.evaluate.scoring.scorers import scorer_of
from mmdora.evaluate.suites import SUITES
from mmdora.evaluate.tasks import TASKS


def show() -> None:
    """Print the tasks with their metric, preparation and result file, and the suites with their columns."""
    for task in TASKS.values():
        made = f"; {task.dataset.command}, {task.results.name}" if task.dataset and task.results else ""
        print(f"{task.name:<20} {task.about}: {scorer_of(task.scorer).metric}{made}")
    for suite in SUITES.values():
        print(f"{suite.name:<20} {', '.join(f'{column.heading} ({column.task})' for column in suite.columns)}")
