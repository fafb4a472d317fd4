"""Intervals over seeds and questions, many comparisons at once, what a design can see. No torch is imported here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

RESAMPLES = 4000
"""The number of resamples, by which p-values are known to about 0.003 near 0.05."""
LEVEL, POWER = 0.05, 0.8
"""The level of tests and intervals, and the chance to see a difference that is called visible (Cohen 1988)."""


@dataclass(frozen=True)
class Difference:
    """The second arm minus the first.

    Attributes:
        value: mean over tasks of the mean over seeds and questions.
        interval: its 95% interval over seeds and questions.
        p: two-sided, the share of resamples at least as far from `value` as that is from 0.
        seeds: the fewest seeds of a task; the interval knows nothing of seeds if it is 1.
    """

    value: float
    interval: tuple[float, float]
    p: float
    seeds: int

    @property
    def seen(self) -> bool:
        """Whether the interval leaves out zero."""
        return self.interval[0] > 0 or self.interval[1] < 0


def difference(
    tasks: Sequence[tuple[np.ndarray, np.ndarray]], *, seed: int = 0, resamples: int = RESAMPLES
) -> Difference:
    """The mean difference over tasks, with an interval by the hierarchical bootstrap.

    For each task seeds are drawn with replacement, and pictures with all their questions, the same for every drawn
    seed, because all seeds answer the same questions (Davison and Hinkley 1997, section 3.8). Tasks are not drawn: the
    interval is about these tasks. A bootstrap of S seeds has the spread of the mean too small by sqrt((S - 1) / S), so
    the seeds' departures from their mean are stretched by its inverse first (Rao and Wu 1988).

    Args:
        tasks: for each task the differences [seeds, questions] and the picture of each question, int [questions].
    """
    random = np.random.default_rng(seed)
    seen, drawn = 0.0, np.zeros(resamples)
    for each, units in tasks:
        seeds = len(each)
        means = each.mean(1, keepdims=True)
        spread = np.sqrt(seeds / (seeds - 1)) if seeds > 1 else 1.0
        stretched = each + (means - means.mean()) * (spread - 1)
        sums = np.stack([np.bincount(units, row) for row in stretched])  # [seeds, pictures]
        sizes = np.bincount(units)
        of_seeds = random.multinomial(seeds, np.full(seeds, 1 / seeds), resamples)
        of_pictures = random.multinomial(len(sizes), np.full(len(sizes), 1 / len(sizes)), resamples)
        totals = ((of_seeds @ sums) * of_pictures).sum(1)
        drawn += totals / (seeds * (of_pictures @ sizes)) / len(tasks)
        seen += float(each.mean()) / len(tasks)
    low, high = np.percentile(drawn, [100 * LEVEL / 2, 100 * (1 - LEVEL / 2)])
    far = np.count_nonzero(np.abs(drawn - seen) >= abs(seen) - 1e-12)
    return Difference(seen, (float(low), float(high)), (far + 1) / (resamples + 1), min(len(e) for e, _ in tasks))


def holm(ps: Mapping[str, float]) -> dict[str, float]:
    """P-values corrected for their number (Holm 1979): any of them below 0.05 is wrong with a chance below 0.05."""
    corrected, worst = {}, 0.0
    for rank, name in enumerate(sorted(ps, key=lambda name: ps[name])):
        worst = max(worst, min(1.0, ps[name] * (len(ps) - rank)))
        corrected[name] = worst
    return {name: corrected[name] for name in ps}


def smallest_visible(*, tasks: int, seeds: int, questions: int, differing: float, seed_spread: float) -> float:
    """The smallest true difference of two arms that a test at 5% sees with a chance of 80%, as a share of 1.

    The variance of a task's difference has a part of the seeds, 2 seed_spread^2 / seeds, and one of the questions,
    at most differing / questions; the second does not shrink with more seeds, since all of them answer the same.

    Args:
        questions: of each task's test split, each about another picture.
        differing: share of the questions on which the two arms differ.
        seed_spread: standard deviation of an arm's score over seeds.
    """
    error = np.sqrt((2 * seed_spread**2 / seeds + differing / questions) / tasks)
    normal = NormalDist()
    return float((normal.inv_cdf(1 - LEVEL / 2) + normal.inv_cdf(POWER)) * error)
