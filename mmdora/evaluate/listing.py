"""`mmdora eval --list`. No torch."""

from __future__ import annotations

from mmdora.evaluate.scoring.scorers import scorer_of
from mmdora.evaluate.suites import SUITES
from mmdora.evaluate.tasks import TASKS


def show() -> None:
    """Print tasks with their number, preparation and result file, and the suites with their columns."""
    for task in TASKS.values():
        made = f"; mmdora prep {task.dataset.replace('_', '-')}, {task.file}" if task.dataset else ""
        print(f"{task.name:<20} {task.about}: {scorer_of(task.scorer).metric}{made}")
    for suite in SUITES.values():
        print(f"{suite.name:<20} {', '.join(f'{column.heading} ({column.task})' for column in suite.columns)}")
