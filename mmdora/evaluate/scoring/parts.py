"""The numbers of a task as functions of sums over its rows, ready to be measured with intervals."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from mmdora.evaluate.scoring.bootstrap import Array, Part, ratio
from mmdora.evaluate.scoring.exact import YES_NO
from mmdora.evaluate.scoring.rows import Prediction
from mmdora.evaluate.scoring.scores import Score

Kinds = Callable[[Prediction], Iterable[str]]  # the kinds a row counts under; they may overlap


@dataclass(frozen=True)
class Parts:
    """As in `Scores`, before measuring; `plain` are numbers that are no function of sums."""

    overall: Part
    by_type: dict[str, Part] = field(default_factory=dict)
    details: dict[str, Part] = field(default_factory=dict)
    plain: dict[str, Score] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)


def mean(scores: Array, chosen: Array | None = None) -> Part:
    """The mean of scores [rows] over the chosen rows (bool [rows]; all, where not given)."""
    weight = np.ones(len(scores)) if chosen is None else chosen.astype(float)
    columns = np.stack([scores * weight, weight], 1)
    return Part(columns, quotient, int(weight.sum()))


def quotient(sums: Array) -> Array:
    return ratio(sums[..., 0], sums[..., 1])


def means(rows: Sequence[Prediction], each: Array, kinds: Kinds, chosen: Array | None = None) -> Parts:
    """The mean score [rows] of the chosen rows, and of those of each kind; yes/no comes before other kinds."""
    kept = np.ones(len(rows), bool) if chosen is None else chosen
    of_row = [set(kinds(row)) for row in rows]
    names = sorted(set().union(*of_row), key=lambda name: (name != YES_NO, name))
    masks = {name: kept & np.array([name in own for own in of_row]) for name in names}
    return Parts(mean(each, kept), {name: mean(each, mask) for name, mask in masks.items() if mask.any()})


def meta_kinds(row: Prediction) -> Iterable[str]:
    """The kinds that `meta.type` (and `meta.l2_category`, of MMBench) names."""
    return [row["meta"][name] for name in ("l2_category", "type") if row["meta"].get(name)]


def picture(row: Prediction) -> Hashable:
    """Questions about the same images or clip are resampled together; a row with neither stands alone."""
    return tuple(row["images"]) or row["meta"].get("features") or row["id"]
