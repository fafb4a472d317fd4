"""Runs cells that have results once more, and says whether they score the same."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from mmdora.errors import MmdoraError
from mmdora.study.cells import Cell, wanted
from mmdora.study.design import Study
from mmdora.study.results import Results, units_of, unpacked
from mmdora.study.run import Runner
from mmdora.study.statistics import Difference, difference


@dataclass(frozen=True)
class Repeated:
    """A cell, its known line and its new one, and the new scores minus the known ones over the same questions."""

    cell: Cell
    known: Mapping[str, Any]
    new: Mapping[str, Any]
    difference: Difference

    @property
    def same(self) -> bool:
        """Whether every answer has the same score, or the interval of the difference holds zero."""
        return self.known["each"] == self.new["each"] or not self.difference.seen

    def __str__(self) -> str:
        low, high = self.difference.interval
        said = "every answer scores the same" if self.known["each"] == self.new["each"] else (
            f"a difference of {100 * self.difference.value:+.1f} points ({100 * low:+.1f} to {100 * high:+.1f})"
        )  # fmt: skip
        return f"{self.cell}: {self.known['test']:.1%} before, {self.new['test']:.1%} now; {said}"


def cheapest(studies: Iterable[Study], runner: Runner, results: Results, count: int) -> list[Cell]:
    """The cells with results that took the least time: one of each arm in turn, so that several methods are repeated.

    Raises:
        MmdoraError: there are fewer.
    """
    known = {c.key: c for study in studies for c in wanted(study, runner.tasks, results) if c.key in results.cells}
    ordered = sorted(known.values(), key=lambda cell: results.cells[cell.key]["cpu_seconds"])
    turns: dict[str, int] = {}
    by_turn = []
    for cell in ordered:
        turns[cell.arm] = turns.get(cell.arm, 0) + 1
        by_turn.append((turns[cell.arm], cell))
    chosen = [cell for _, cell in sorted(by_turn, key=lambda pair: pair[0])[:count]]
    if len(chosen) < count:
        raise MmdoraError(f"--again {count}: there are results of {len(chosen)} cells of these studies")
    return chosen


def repeat(runner: Runner, cell: Cell, results: Results) -> Repeated:
    """Run a cell anew from its settings, in a folder of its own.

    Raises:
        MmdoraError: the task's data are no longer those of the known result.
    """
    known = results.cells[cell.key]
    splits = runner.splits(cell.base, cell.task)
    if splits.digest != known["data"]:
        raise MmdoraError(f"{cell.task.name}: its data are no longer those that the results were made of")
    new = runner.line(cell, "again")
    each = unpacked(new["each"]) - unpacked(known["each"])
    units = units_of(results.tasks[cell.base, cell.task.name])
    return Repeated(cell, known, new, difference([(each[None], units)]))
