"""Compares how evenly two runs spread their changes over singular values, which is said to be why DoRA works.

arXiv 2511.00051 ("Calibrating and Rotating") finds that DoRA's update has a higher entropy of singular values than
LoRA's, closer to that of full fine-tuning. The entropy is the logarithm of the effective rank (`decomposition`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from mmdora.analysis.findings import MIN_MATRICES, SHOWN, last_rows
from mmdora.analysis.rows import WeightRow
from mmdora.config import MODALITIES
from mmdora.evaluate.scoring.bootstrap import Part, measure, ratio
from mmdora.evaluate.scoring.scores import Score

ORDER = ("lora", "dora", "full")
"""The methods that are compared, in the paper's order of rising entropy."""


@dataclass(frozen=True)
class Spread:
    """The entropy of the singular values of the second run's changes minus the first's, over the same matrices.

    Attributes:
        first: run and method whose entropy the paper has lower.
        second: run and method whose entropy the paper has higher.
        entropies: mean entropy of the first and of the second, in nats.
        difference: their mean difference, with its 95% interval by a bootstrap over matrices.
    """

    first: tuple[str, str]
    second: tuple[str, str]
    modality: str
    entropies: tuple[float, float]
    difference: Score

    def __str__(self) -> str:
        (first, one), (second, two) = self.first, self.second
        interval = self.difference.interval
        if interval is None:
            outcome = "too few matrices for an interval"
        else:
            shown = f"95% interval {interval[0]:+.2f} to {interval[1]:+.2f}"
            seen = interval[0] > 0 or interval[1] < 0
            sign = "reproduced" if interval[0] > 0 else "refuted" if seen else "neither reproduced nor refuted"
            outcome = f"{shown}: that it is higher (arXiv 2511.00051) is {sign} here"
        return (
            f"{self.modality}: the singular values of the change have an entropy of {self.entropies[1]:.2f} in "
            f"{second} ({SHOWN[two]}) and of {self.entropies[0]:.2f} in {first} ({SHOWN[one]}), over the same "
            f"{self.difference.n} matrices; {outcome}."
        )


def spreads(rows: Sequence[WeightRow]) -> list[Spread]:
    """A comparison for each two runs and each modality in which they changed the same matrices by two methods.

    LoRA and DoRA are compared at equal rank only, since the rank alone bounds the entropy of LoRA.
    """
    last = {run: last_rows(rows, run) for run in dict.fromkeys(row.run for row in rows)}
    found = []
    for pair in combinations(last.values(), 2):
        for modality in MODALITIES:
            own = [
                {row.name: row for row in there if row.modality == modality and row.effective_rank} for there in pair
            ]
            methods = [{row.method for row in there.values()} for there in own]
            if all(len(one) == 1 and one <= set(ORDER) for one in methods) and methods[0] != methods[1]:
                first, second = sorted(own, key=lambda there: ORDER.index(next(iter(there.values())).method))
                if spread := _spread(first, second, modality):
                    found.append(spread)
    return found


def _spread(first: dict[str, WeightRow], second: dict[str, WeightRow], modality: str) -> Spread | None:
    both = [(first[name], second[name]) for name in first if name in second]
    # Full fine-tuning has no rank, which is written as 0.
    both = [(one, two) for one, two in both if two.method == "full" or one.rank == two.rank]
    if not both:
        return None
    entropies = np.log(np.array([[one.effective_rank, two.effective_rank] for one, two in both], float))
    columns = np.stack([np.ones(len(both)), entropies[:, 1] - entropies[:, 0]], 1)
    names = [one.name for one, _ in both]
    score = measure({"d": Part(columns, lambda sums: ratio(sums[..., 1], sums[..., 0]), len(both))}, names)["d"]
    kept = score if len(both) >= MIN_MATRICES else Score(score.value, score.n)
    one, two = both[0]
    means = entropies.mean(0)
    return Spread((one.run, one.method), (two.run, two.method), modality, (float(means[0]), float(means[1])), kept)
