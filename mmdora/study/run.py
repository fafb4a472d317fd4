"""`mmdora study`: reads the results that there are, runs the cells that are missing, and writes them down."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console

from mmdora.files import write_whole
from mmdora.models.locate import bundled
from mmdora.outputs.lock import Held, locked_file
from mmdora.outputs.stop import stoppable
from mmdora.study.cells import Cell, planned, wanted
from mmdora.study.data import Splits, splits_of
from mmdora.study.design import Study
from mmdora.study.results import RESULTS, Results, read_results
from mmdora.study.tasks import RETAINED, TASKS, StudyTask
from mmdora.study.work import reference, run_cell

SECONDS_A_CELL = 90.0
"""The time of a cell before any was measured: tiny-llava on one core of a shared CPU."""
POLL_SECONDS = 5.0
"""How often a process that has nothing to do looks whether another one has finished a cell that it waits for."""


@dataclass
class Runner:
    """Runs the missing cells of studies below one folder, which other processes and machines may share.

    Each finished cell is a file of its own there, and so is its lock while it runs; the file of all results is written
    from them, so that nobody waits to write it.

    Args:
        out: the folder: data/, splits/, runs/, cells/ and results.jsonl.
        known: files of results that need not be made again.
        until: `time.monotonic()` after which no cell is begun.
        given: name of a task -> its splits, of those that are there already.
    """

    out: Path
    known: Sequence[Path] = ()
    tasks: Mapping[str, StudyTask] = field(default_factory=lambda: TASKS)
    until: float = float("inf")
    console: Console = field(default_factory=Console)
    given: dict[str, Splits] = field(default_factory=dict)
    _timed: list[float] = field(default_factory=list)

    @property
    def results(self) -> Results:
        """All results that there are by now."""
        return read_results([*self.known, self.out / RESULTS, *sorted((self.out / "cells").glob("*.json"))])

    def run(self, study: Study) -> Results:
        """Run what is missing of a study, and give all results.

        Raises:
            Interrupted: after SIGTERM or SIGINT; finished cells are kept, and the same command goes on.
        """
        results = self.results
        total, missing = planned(study), self.left(study, results)
        self.say(f"{study.title}: {total} cells, {total - missing} are there; about {self.hours(missing, results)}")
        with stoppable(lambda: f"finished cells are kept in {self.out}; the same command goes on from there"):
            while todo := [c for c in wanted(study, self.tasks, results) if c.key not in results.cells]:
                if time.monotonic() > self.until:
                    break
                # `any` ends at the first cell that gave a result, since that may have changed what should run next.
                if not any(self.one(study, cell, results) for cell in todo):
                    time.sleep(POLL_SECONDS)  # Other processes run all that could run now.
                results = self.results
        results.write(self.out / RESULTS)
        return results

    def left(self, study: Study, results: Results) -> int:
        """How many cells are missing, as far as that is known before all rates are chosen."""
        keys = {cell.key for cell in wanted(study, self.tasks, results)}
        later = planned(study) - len(keys)
        return sum(key not in results.cells for key in keys) + max(0, later)

    def hours(self, cells: int, results: Results) -> str:
        """The time that cells take, in words; by those of this process, else those in the results."""
        known = self._timed or [line["seconds"] for line in results.cells.values()]
        each = sum(known) / len(known) if known else SECONDS_A_CELL
        return f"{cells * each / 3600:.1f} h ({each:.0f} s a cell, {'measured' if known else 'a guess'})"

    @property
    def seconds_a_cell(self) -> float:
        """The mean time of the cells of this process."""
        return sum(self._timed) / len(self._timed) if self._timed else SECONDS_A_CELL

    def say(self, line: str) -> None:
        self.console.print(line, markup=False, highlight=False, soft_wrap=True)

    def one(self, study: Study, cell: Cell, results: Results) -> bool:
        """Run a cell, unless another process does; whether it has a result now that it had not before."""
        path = self.out / "cells" / f"{cell.key}.json"
        if path.is_file():
            return True
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with locked_file(path):
                if not path.is_file():
                    begun = time.monotonic()
                    line = self.line(cell)
                    write_whole(path, json.dumps(line) + "\n")
                    self._timed.append(time.monotonic() - begun)
        except Held:
            return False
        results.add(json.loads(path.read_text(encoding="utf-8")))
        left = self.left(study, results)
        line = results.cells[cell.key]
        done = planned(study) - left
        self.say(
            f"{done}/{planned(study)} {cell}: validation {line['validation']:.1%}, test {line['test']:.1%}, "
            f"{line['seconds']:.0f} s; about {self.hours(left, results)} left"
        )
        return True

    def line(self, cell: Cell, folder: str = "runs") -> dict[str, Any]:
        """Run a cell, and give its line of results; its run folder lies in `folder`."""
        splits, own = self.splits(cell.base, cell.task), self.own(cell.base)
        return run_cell(cell, splits, self.out / folder / cell.key, own)

    def own(self, base: str) -> Splits | None:
        """The questions that a bundled base was made with; of others they are not known."""
        return splits_of(RETAINED, self.out) if base in bundled() else None

    def splits(self, base: str, task: StudyTask) -> Splits:
        """The task's splits; the scores of base and question alone are noted the first time, if no file has them."""
        if task.name not in self.given:
            self.given[task.name] = splits_of(task, self.out)
        splits = self.given[task.name]
        path = self.out / "cells" / f"task-{base.replace('/', '--')}-{task.name}.json"
        if not path.is_file() and (base, task.name) not in read_results(self.known).tasks:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_whole(path, json.dumps(reference(base, task, splits, self.own(base))) + "\n", shared=True)
        return splits
