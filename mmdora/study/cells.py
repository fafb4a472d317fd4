"""A cell is one point of a study's grid, and which cells are due follows from the results that there are."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import TypeAdapter

from mmdora.config import Modality
from mmdora.files import digest_of
from mmdora.study.design import Study
from mmdora.study.results import Results
from mmdora.study.tasks import StudyTask

KEY_DIGITS = 16
"""Hexadecimal digits of a cell's key that are kept; 64 bits tell the cells of all studies apart."""


@dataclass(frozen=True)
class Cell:
    """One run: base, task, arm, peak learning rate and seed.

    Cells of several studies that have the same settings have the same key, whatever their arms are called.
    """

    base: str
    task: StudyTask
    arm: str
    adapt: Mapping[str, Modality]
    rate: float
    seed: int

    @property
    def settings(self) -> dict[str, Any]:
        """All that decides its result, as plain values; what has its default is left out."""
        adapt = {name: TypeAdapter(Modality).dump_python(how, mode="json") for name, how in self.adapt.items()}
        plain = TypeAdapter(Modality).dump_python(Modality(), mode="json")
        return {
            "base": self.base,
            "task": self.task.name,
            "adapt": {
                name: {key: value for key, value in how.items() if value != plain[key]} for name, how in adapt.items()
            },
            "training": self.task.training(self.rate, self.seed),
        }

    @property
    def key(self) -> str:
        return digest_of(self.settings)[:KEY_DIGITS]

    def __str__(self) -> str:
        return f"{self.base} {self.task.name}, {self.arm}, lr {self.rate:g}, seed {self.seed}"


@dataclass(frozen=True)
class Group:
    """The cells of one arm on one task and base, which differ in rate and seed."""

    study: Study
    base: str
    task: StudyTask
    arm: str

    def cell(self, rate: float, seed: int) -> Cell:
        return Cell(self.base, self.task, self.arm, self.study.all_arms[self.arm], rate, seed)

    @property
    def search_seeds(self) -> Sequence[int]:
        """The seeds that train at every rate."""
        return self.study.seeds[: self.study.search_seeds]

    def search(self) -> list[Cell]:
        """The cells by whose validation scores the rate is chosen."""
        return [self.cell(rate, seed) for seed in self.search_seeds for rate in self.study.rates.values]

    def chosen(self, results: Results) -> float | None:
        """The rate with the best mean validation score, the lowest of equal ones; None before all of them are there."""
        scores: dict[float, list[float]] = {}
        for cell in self.search():
            if cell.key not in results.cells:
                return None
            scores.setdefault(cell.rate, []).append(results.cells[cell.key]["validation"])
        return max(scores, key=lambda rate: (sum(scores[rate]) / len(scores[rate]), -rate))

    def at(self, rate: float) -> list[Cell]:
        """The cells of all seeds at a rate."""
        return [self.cell(rate, seed) for seed in self.study.seeds]


def groups(study: Study, tasks: Mapping[str, StudyTask]) -> Iterator[Group]:
    """Every arm on every task and base, task by task, so that what a stopped study leaves is whole tasks."""
    for base in study.bases:
        for task in study.tasks:
            for arm in study.all_arms:
                yield Group(study, base, tasks[task], arm)


def wanted(study: Study, tasks: Mapping[str, StudyTask], results: Results) -> list[Cell]:
    """The cells that are known by now, with and without a result, in the order in which they should run.

    A task's later seeds are known once all rates of an arm have a validation score.
    """
    cells: dict[str, Cell] = {}
    by_task: dict[tuple[str, str], list[Group]] = {}
    for group in groups(study, tasks):
        by_task.setdefault((group.base, group.task.name), []).append(group)
    for together in by_task.values():
        cells |= {cell.key: cell for group in together for cell in group.search()}
        rates = [(group, _known(group.chosen(results), study.shared_rate)) for group in together]
        for seed in study.seeds:
            later = [group.cell(rate, seed) for group, known in rates for rate in sorted(known)]
            cells |= {cell.key: cell for cell in later if cell.key not in cells}
    return list(cells.values())


def _known(*rates: float | None) -> set[float]:
    return {rate for rate in rates if rate is not None}


def planned(study: Study) -> int:
    """How many cells the whole study has; less where the chosen rate is the shared one, which is known in the end."""
    later = len(study.seeds) - study.search_seeds
    each = study.rates.count * study.search_seeds + later * (2 if study.shared_rate is not None else 1)
    return len(study.bases) * len(study.tasks) * len(study.all_arms) * each
