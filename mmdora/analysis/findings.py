"""Draws conclusions from the rows of an analysis: correlation of dM and dD beside the paper's, shares by modality."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean, median

import numpy as np

from mmdora.analysis.rows import WeightRow
from mmdora.config import MODALITIES
from mmdora.evaluate.scoring.bootstrap import Part, measure, ratio
from mmdora.evaluate.scoring.scores import Score

PAPER = {"full": -0.62, "lora": 0.83, "dora": -0.31}
"""Correlation of dM and dD over layers and checkpoints of VL-BART's query weights (arXiv 2402.09353, section 3.2)."""
SHOWN = {"full": "full fine-tuning", "lora": "LoRA", "dora": "DoRA", "magnitude": "magnitude alone"}
QUERIES = ("q_proj", "query", "q", "wq", "to_q")
"""The last part of the name of a query weight is one of these. A fused `qkv` is no query weight."""
MIN_MATRICES = 5
"""The fewest matrices for which an interval is given. A bootstrap needs many different draws: 4 matrices allow only 35,
and 5 allow 126."""
ALL, EVERY, QUERY = "all", "all matrices", "query matrices"


@dataclass(frozen=True)
class Correlation:
    """Pearson's r of dM and dD over matrices and checkpoints of one run and method."""

    run: str
    method: str
    modality: str
    """The modality of the matrices; "all" for those of all modalities."""
    over: str
    """The matrices of the correlation: all of them, or the query matrices, which the paper looked at."""
    matrices: int
    score: Score
    """The correlation r, where n counts points (a matrix at a checkpoint). The interval comes from a bootstrap that
    draws whole matrices, since the checkpoints of a matrix are not independent; it is None for fewer than
    `MIN_MATRICES` matrices."""

    def __str__(self) -> str:
        interval = self.score.interval
        shown = f" [{_signed(interval[0])}, {_signed(interval[1])}]" if interval else ""
        return f"{_signed(self.score.value)}{shown}"

    @property
    def outcome(self) -> str:
        """Whether the paper's sign is "reproduced", "refuted" or "undecided"; "" if it has no number for the method."""
        paper, interval = PAPER.get(self.method), self.score.interval
        if paper is None:
            return ""
        if interval is None or interval[0] <= 0 <= interval[1]:
            return "undecided"
        return "reproduced" if (self.score.value > 0) == (paper > 0) else "refuted"

    @property
    def verdict(self) -> str:
        """A sentence that compares the sign with the paper's, for a method for which the paper has a number."""
        which = {ALL: ""}.get(self.modality, f"{self.modality} ")
        kind = "query matrices" if self.over == QUERY else "matrices"
        measured = f"{self.run} ({SHOWN[self.method]}): over {self.matrices} {which}{kind} r(dM, dD) = {self}"
        paper = f"the paper's {_signed(PAPER[self.method])}"
        if self.score.interval is None:
            return f"{measured}: too few matrices for an interval, so nothing is said of {paper}."
        if self.outcome == "undecided":
            return f"{measured}: the interval includes zero, so {paper} is neither reproduced nor refuted here."
        return f"{measured}: the interval excludes zero, and the sign of {paper} is {self.outcome} here."


@dataclass(frozen=True)
class Summary:
    """The change of a run's last checkpoint in the weights of one modality that one method trains."""

    run: str
    step: int | None
    modality: str
    method: str
    matrices: int
    share: float
    """The share of these weights in the squared norm of the whole change, which includes biases and norms."""
    relative: float
    """The norm of the change of these weights together, divided by their norm in the base."""
    delta_m: float | None
    """The mean of dM over the matrices; None if there is no matrix to decompose."""
    delta_d: float | None
    effective_rank: float | None
    """The median of the effective rank over the matrices."""
    stable_rank: float | None


def correlations(rows: Sequence[WeightRow]) -> list[Correlation]:
    """Correlate dM and dD for each run, method and modality, over all matrices and over the query matrices.

    A group in which dM or dD does not vary is left out.
    """
    determined = []
    for run, method in _pairs(rows):
        own = [row for row in rows if (row.run, row.method) == (run, method) and row.delta_d is not None]
        for modality in (*MODALITIES, ALL):
            there = [row for row in own if modality in (row.modality, ALL)]
            for over in (EVERY, QUERY):
                chosen = [row for row in there if over == EVERY or row.name.rpartition(".")[2] in QUERIES]
                if score := correlation(chosen):
                    matrices = len({row.name for row in chosen})
                    determined.append(Correlation(run, method, modality, over, matrices, score))
    return determined


def correlation(rows: Sequence[WeightRow]) -> Score | None:
    """Pearson's r of dM and dD, with its 95% interval by a bootstrap over matrices; None if dM or dD does not vary."""
    points = np.array([(row.delta_m, row.delta_d) for row in rows], float).reshape(-1, 2)
    if len(points) < 3 or not ((spread := points.std(0)) > 1e-12 * np.abs(points).max(0)).all():
        return None
    x, y = ((points - points.mean(0)) / spread).T  # Standardised, so that the sums of squares below lose no digits.
    columns = np.stack([np.ones_like(x), x, y, x * x, y * y, x * y], 1)
    names = [row.name for row in rows]
    score = measure({"r": Part(columns, _pearson, len(points))}, names)["r"]
    return score if len(set(names)) >= MIN_MATRICES else Score(score.value, score.n)


def _pearson(sums: np.ndarray) -> np.ndarray:
    n, x, y, xx, yy, xy = np.moveaxis(sums, -1, 0)
    variances = (xx / n - (x / n) ** 2) * (yy / n - (y / n) ** 2)
    return ratio(xy / n - x * y / n**2, np.sqrt(np.where(variances > 1e-18, variances, 0)))


def summaries(rows: Sequence[WeightRow]) -> list[Summary]:
    """A summary for each run, modality and method, of the last checkpoint."""
    last_ones = []
    for row_run in dict.fromkeys(row.run for row in rows):
        last = last_rows(rows, row_run)
        for modality in (*MODALITIES, "other"):
            there = [row for row in last if row.modality == modality]
            for method in dict.fromkeys(row.method for row in there):
                last_ones.append(_summary([row for row in there if row.method == method]))
    return last_ones


def _summary(rows: Sequence[WeightRow]) -> Summary:
    first, matrices = rows[0], [row for row in rows if row.delta_m is not None]
    base = sum(row.base_norm**2 for row in rows)
    return Summary(
        run=first.run,
        step=first.step,
        modality=first.modality,
        method=first.method,
        matrices=len(matrices),
        share=sum(row.share for row in rows),
        relative=(sum(row.delta_norm**2 for row in rows) / base) ** 0.5 if base else float("nan"),
        delta_m=_over(fmean, (row.delta_m for row in matrices)),
        delta_d=_over(fmean, (row.delta_d for row in matrices)),
        effective_rank=_over(median, (row.effective_rank for row in matrices)),
        stable_rank=_over(median, (row.stable_rank for row in matrices)),
    )


def last_rows(rows: Sequence[WeightRow], run: str) -> list[WeightRow]:
    """The rows of a run's last checkpoint."""
    own = [row for row in rows if row.run == run]
    return [row for row in own if row.step == own[-1].step]


def verdicts(measured: Iterable[Correlation]) -> list[str]:
    """Sentences on each run and method for which the paper has a number.

    There is one sentence over the query matrices, as in the paper; one over the language model, because the paper
    measured a language model; and one over all matrices.
    """
    known = {(c.run, c.method, c.modality, c.over): c for c in measured if c.method in PAPER}
    chosen: list[Correlation] = []
    for run, method in dict.fromkeys(key[:2] for key in known):
        language, every = (known.get((run, method, part, EVERY)) for part in ("language", ALL))
        same = language and every and language.matrices == every.matrices
        chosen += [c for c in (known.get((run, method, ALL, QUERY)), language, None if same else every) if c]
    return [c.verdict for c in chosen]


def conclusions(found: Sequence[Summary]) -> list[str]:
    """A sentence on each run: where its change lies, and whether it is more of direction or of magnitude."""
    lines = []
    for run in dict.fromkeys(own.run for own in found):
        own = sorted((part for part in found if part.run == run), key=lambda part: -part.share)
        most = own[0]
        shares = ", ".join(f"{part.share:.0%} {part.modality} ({SHOWN[part.method]})" for part in own if part.share > 0)
        told = f"{run}: of the whole change, {shares or 'nothing'}."
        if most.delta_m is not None and most.delta_d is not None and most.share > 0:
            means = (
                f"the directions by {number(most.delta_d)} on average and changed magnitudes by {number(most.delta_m)}"
            )
            told += f" In the largest part it turned {means}; its change has an effective rank of "
            told += f"{number(most.effective_rank)}."
        lines.append(told)
    return lines


def number(value: float | None) -> str:
    """A number as text with three significant digits; very small and very large numbers have a power of ten."""
    if value is None:
        return "–"
    if value == 0 or 1e-3 <= abs(value) < 1e4:
        return f"{value:.3g}"
    digits, power = f"{value:.1e}".split("e")
    return f"{digits.removesuffix('.0')}·10{str(int(power)).translate(str.maketrans('-0123456789', '⁻⁰¹²³⁴⁵⁶⁷⁸⁹'))}"


def _over(statistic, values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistic(known) if known else None


def _pairs(rows: Iterable[WeightRow]) -> list[tuple[str, str]]:
    return list(dict.fromkeys((row.run, row.method) for row in rows))


def _signed(value: float) -> str:
    return f"{value:+.2f}".replace("-", "−")
