"""What the results of a study say: scores at chosen rates, differences with intervals, curves over rates.

This module imports no torch.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from mmdora.study.cells import Group, wanted
from mmdora.study.design import Study
from mmdora.study.results import Results, units_of, unpacked
from mmdora.study.statistics import Difference, difference, holm, smallest_visible
from mmdora.study.tasks import StudyTask

TELLING = (0.40, 0.95)
"""Between these scores of the first arm of a pair, the reference, a task can tell arms apart."""
POINT = 0.01
"""A rate is as good as the best if its score lies within so much of the best score (one point)."""


@dataclass(frozen=True)
class ArmScore:
    """An arm on a task at one rate: means over the seeds.

    Attributes:
        score: of the test split.
        trainable: number of parameters that train.
        cpu_seconds: of training and answering.
        peak_bytes: the most memory of training; None where the system did not tell.
        retained: score of the base's own questions after training; None if these are not known.
    """

    rate: float
    score: float
    seeds: int
    trainable: int
    cpu_seconds: float
    peak_bytes: float | None
    retained: float | None


@dataclass(frozen=True)
class OnTask:
    """A pair of arms on one task, and the second minus the first with the p-value corrected over the tasks."""

    base: str
    task: str
    first: ArmScore
    second: ArmScore
    difference: Difference
    p: float

    @property
    def tells(self) -> bool:
        """Whether it is counted, and part of the mean: the first arm's score leaves room, and there are two seeds."""
        return TELLING[0] <= self.first.score <= TELLING[1] and self.difference.seeds > 1

    @property
    def verdict(self) -> str:
        """In words. A difference counts as seen only if it stands after the correction, too."""
        if self.difference.seeds < 2:
            return "one seed: not counted"
        if not self.tells:
            return "near floor or ceiling: not counted"
        if not self.difference.seen or self.p >= 0.05:
            return "no difference seen"
        return "second ahead" if self.difference.value > 0 else "first ahead"


@dataclass(frozen=True)
class PairFinding:
    """A pair of arms over all tasks that both have results on; `mean` is over those that tell, None without one."""

    first: str
    second: str
    tasks: Sequence[OnTask]
    mean: Difference | None

    @property
    def counts(self) -> tuple[int, int, int]:
        """On how many tasks the second is ahead, no difference is seen, and the first is ahead."""
        said = [one.verdict for one in self.tasks]
        return said.count("second ahead"), said.count("no difference seen"), said.count("first ahead")


def pairs(study: Study, tasks: Mapping[str, StudyTask], results: Results, *, shared: bool) -> list[PairFinding]:
    """The pairs of a study's `compare`, each arm at its chosen rate, or both at the shared one."""
    return [_pair(study, tasks, results, first, second, shared) for first, second in study.compare]


def _pair(
    study: Study, tasks: Mapping[str, StudyTask], results: Results, first: str, second: str, shared: bool
) -> PairFinding:
    found: list[tuple[str, str, ArmScore, ArmScore, Difference]] = []
    data = []
    for base in study.bases:
        for name in study.tasks:
            two = [Group(study, base, tasks[name], arm) for arm in (first, second)]
            rates = [study.shared_rate if shared else group.chosen(results) for group in two]
            seeds = [
                seed
                for seed in study.seeds
                if all(
                    rate is not None and group.cell(rate, seed).key in results.cells
                    for group, rate in zip(two, rates, strict=True)
                )
            ]
            if not seeds or (base, name) not in results.tasks:
                continue
            each = [_each(group, rate, seeds, results) for group, rate in zip(two, rates, strict=True)]
            data.append((each[1] - each[0], units_of(results.tasks[base, name])))
            scores = [_score(group, rate, seeds, results) for group, rate in zip(two, rates, strict=True)]
            found.append((base, name, scores[0], scores[1], difference(data[-1:])))
    corrected = holm({f"{base} {name}": own.p for base, name, *_, own in found})
    said = [OnTask(*one, p=corrected[f"{one[0]} {one[1]}"]) for one in found]
    telling = [own for own, one in zip(data, said, strict=True) if one.tells]
    return PairFinding(first, second, said, difference(telling) if telling else None)


def _each(group: Group, rate: float | None, seeds: Sequence[int], results: Results) -> np.ndarray:
    """[seeds, questions] the scores of the test questions."""
    assert rate is not None
    return np.stack([unpacked(results.cells[group.cell(rate, seed).key]["each"]) for seed in seeds])


def _score(group: Group, rate: float | None, seeds: Sequence[int], results: Results) -> ArmScore:
    assert rate is not None
    lines = [results.cells[group.cell(rate, seed).key] for seed in seeds]
    return ArmScore(
        rate,
        float(np.mean([line["test"] for line in lines])),
        len(lines),
        lines[0]["trainable"],
        float(np.mean([line["cpu_seconds"] for line in lines])),
        _mean(line.get("train_peak_bytes") for line in lines),
        _mean(line.get("retained") for line in lines),
    )


def _mean(values: Iterable[float | None]) -> float | None:
    """The mean; None if one of the values is not known."""
    known = list(values)
    return None if None in known else float(np.mean(known))  # pyright: ignore[reportArgumentType, reportCallIssue]


@dataclass(frozen=True)
class Curve:
    """The mean test score of an arm over the rates of the grid, on one task; only rates with results are in it.

    Attributes:
        points: rate and score, by rising rate.
        retained: at the same rates, the mean score of the base's own questions afterwards; None if it is not known.
        seeds: the fewest seeds at a rate.
    """

    base: str
    task: str
    arm: str
    points: Sequence[tuple[float, float]]
    retained: Sequence[float | None]
    seeds: int

    @property
    def range(self) -> tuple[float, float]:
        """The lowest and the highest rate of the unbroken stretch around the best whose scores lie within a point."""
        scores = [score for _, score in self.points]
        best = int(np.argmax(scores))
        low = high = best
        while low > 0 and scores[low - 1] >= scores[best] - POINT:
            low -= 1
        while high + 1 < len(scores) and scores[high + 1] >= scores[best] - POINT:
            high += 1
        return self.points[low][0], self.points[high][0]


def curves(study: Study, tasks: Mapping[str, StudyTask], results: Results) -> list[Curve]:
    """A curve for each base, task and arm that has a result; of the seeds that train at every rate."""
    found = []
    for base in study.bases:
        for name in study.tasks:
            for arm in study.all_arms:
                group = Group(study, base, tasks[name], arm)
                keys = {
                    rate: [group.cell(rate, seed).key for seed in group.search_seeds] for rate in study.rates.values
                }
                lines = {
                    rate: [results.cells[key] for key in own if key in results.cells] for rate, own in keys.items()
                }
                lines = {rate: own for rate, own in lines.items() if own}
                if lines:
                    points = [(rate, float(np.mean([line["test"] for line in own]))) for rate, own in lines.items()]
                    retained = [_mean(line.get("retained") for line in own) for own in lines.values()]
                    found.append(Curve(base, name, arm, points, retained, min(map(len, lines.values()))))
    return found


def mean_widths(study: Study, found: Sequence[Curve]) -> dict[str, float]:
    """Arm -> the width of its range in factors of ten, as the mean over the tasks on which its curve is complete."""
    widths: dict[str, list[float]] = {}
    for curve in found:
        if len(curve.points) == study.rates.count:
            low, high = curve.range
            widths.setdefault(curve.arm, []).append(float(np.log10(high / low)))
    return {arm: float(np.mean(own)) for arm, own in widths.items()}


def visible(study: Study, tasks: Mapping[str, StudyTask]) -> tuple[float, float]:
    """The smallest differences that the whole design can see: of one task, and of the mean over all tasks."""
    questions = min(tasks[name].pictures for name in study.tasks)
    one, every = (
        smallest_visible(
            tasks=count,
            seeds=len(study.seeds),
            questions=questions,
            differing=study.expected.differing,
            seed_spread=study.expected.seed_spread,
        )
        for count in (1, len(study.tasks) * len(study.bases))
    )
    return one, every


def done(study: Study, tasks: Mapping[str, StudyTask], results: Results) -> int:
    """How many of a study's cells have a result."""
    return sum(cell.key in results.cells for cell in wanted(study, tasks, results))
