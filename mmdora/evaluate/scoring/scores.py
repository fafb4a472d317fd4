"""The result of an evaluation: a number with its interval, and all numbers of one task. No torch is imported here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Score:
    """A number, the number of rows `n` that it is computed over, and its 95% interval (None if it has none)."""

    value: float
    n: int
    interval: tuple[float, float] | None = None

    def to_dict(self) -> dict[str, Any]:
        interval = None if self.interval is None else list(self.interval)
        return {"score": self.value, "n": self.n, "interval95": interval}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Score:
        interval = values["interval95"]
        return cls(values["score"], values["n"], None if interval is None else (interval[0], interval[1]))

    def __str__(self) -> str:
        shown = "" if self.interval is None else f" [{self.interval[0]:.1%}, {self.interval[1]:.1%}]"
        return f"{self.value:.1%}{shown} of {self.n:,}"


@dataclass(frozen=True)
class Scores:
    """All numbers of one task.

    Attributes:
        overall: the number that papers print; `metric` names it.
        by_type: the same number over the rows of each kind; kinds may overlap.
        details: other numbers of the official scorer.
        counts: name -> number of rows, such as those whose answer could not be read.
        left_out: name of each number of the official scorer that these rows do not allow -> the reason.
        each: the score of every row, in their order; `to_dict` does not write it, and `==` does not compare it.
    """

    overall: Score
    by_type: dict[str, Score]
    details: dict[str, Score] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    metric: str = "accuracy"
    each: tuple[float, ...] = field(default=(), compare=False, repr=False)

    @property
    def n(self) -> int:
        return self.overall.n

    def to_dict(self) -> dict[str, Any]:
        return {
            "metric": self.metric,
            "overall": self.overall.to_dict(),
            "by_type": {name: score.to_dict() for name, score in self.by_type.items()},
            "details": {name: score.to_dict() for name, score in self.details.items()},
            "counts": dict(self.counts),
            "left_out": dict(self.left_out),
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Scores:
        """Make scores of the result of `to_dict`, which is also the content of metrics.json."""

        def read(part: Mapping[str, Any]) -> dict[str, Score]:
            return {name: Score.from_dict(score) for name, score in part.items()}

        return cls(
            Score.from_dict(values["overall"]),
            read(values["by_type"]),
            read(values["details"]),
            dict(values["counts"]),
            dict(values["left_out"]),
            values["metric"],
        )

    def __str__(self) -> str:
        return "; ".join(f"{name} {part}" for name, part in [("all", self.overall), *self.by_type.items()])
