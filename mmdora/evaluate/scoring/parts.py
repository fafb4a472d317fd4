"""The numbers of a task as functions of sums over its rows, ready to be measured with intervals."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from mmdora.evaluate.scoring.bootstrap import Array, Part, ratio
from mmdora.evaluate.scoring.exact import YES_NO
from mmdora.evaluate.scoring.rows import Prediction
from mmdora.evaluate.scoring.scores import Score

Kinds = Callable[[Prediction], Iterable[str]]
"""A function that gives the kinds of questions under which a row is counted; a row may have several."""


@dataclass(frozen=True)
class PartScores:
    """The numbers of `Scores` before they are measured; `plain` holds those that are not functions of sums."""

    overall: Part
    by_type: dict[str, Part] = field(default_factory=dict)
    details: dict[str, Part] = field(default_factory=dict)
    plain: dict[str, Score] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)


def mean(scores: Array, chosen: Array | None = None) -> Part:
    """The mean of the scores [rows] over the chosen rows (bool [rows]; None chooses all)."""
    weight = np.ones(len(scores)) if chosen is None else chosen.astype(float)
    columns = np.stack([scores * weight, weight], 1)
    return Part(columns, quotient, int(weight.sum()))


def quotient(sums: Array) -> Array:
    return ratio(sums[..., 0], sums[..., 1])


def means(rows: Sequence[Prediction], each: Array, kinds: Kinds, chosen: Array | None = None) -> PartScores:
    """The mean score over the chosen rows, and over those of each kind; the kind yes/no comes first.

    Args:
        each: float [rows], the score of each row.
        chosen: bool [rows], the rows to count; None counts all.
    """
    kept = np.ones(len(rows), bool) if chosen is None else chosen
    of_row = [set(kinds(row)) for row in rows]
    names = sorted(set().union(*of_row), key=lambda name: (name != YES_NO, name))
    masks = {name: kept & np.array([name in own for own in of_row]) for name in names}
    return PartScores(mean(each, kept), {name: mean(each, mask) for name, mask in masks.items() if mask.any()})


def meta_kinds(row: Prediction) -> Iterable[str]:
    """The kinds that `meta.type` names, and for MMBench `meta.l2_category`."""
    return [row["meta"][name] for name in ("l2_category", "type") if row["meta"].get(name)]


def picture(row: Prediction) -> Hashable:
    """The unit of resampling: rows about the same images or videos share it; a row without any has its own."""
    return (*row["images"], *row.get("videos", ())) or row["meta"].get("features") or row["id"]
