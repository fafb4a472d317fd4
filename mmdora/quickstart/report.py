"""Makes one HTML page of plain data: scores, loss curves, and pictures with answers.

This module imports no torch and knows no model. The page is a single file that loads nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mmdora.evaluate.table import ScoreRow, kinds
from mmdora.files import write_whole
from mmdora.html import SERIES, data_uri, draw_curves, environment

TEMPLATE = "report.html.j2"


@dataclass(frozen=True)
class GalleryExample:
    """Pictures, a question about them, and the answers: model -> (text, whether it is right; None if not graded)."""

    images: Sequence[bytes]  # contents of the picture files
    question: str
    answer: str
    answers: Mapping[str, tuple[str, bool | None]]

    @property
    def graded(self) -> bool:
        return all(right is not None for _, right in self.answers.values())


@dataclass(frozen=True)
class Report:
    """The content of the page; empty parts are left out."""

    title: str
    lead: str
    verdict: Sequence[str]
    tables: Mapping[str, Sequence[ScoreRow]]  # heading -> scores of the models
    curves: Mapping[str, Sequence[tuple[int, float]]] = field(default_factory=dict)  # name -> (step, loss)
    galleries: Mapping[str, Sequence[GalleryExample]] = field(default_factory=dict)  # heading -> examples
    parity: Mapping[str, str] = field(default_factory=dict)  # export -> what was measured
    plans: Mapping[str, str] = field(default_factory=dict)  # run -> plan as text
    timing: Sequence[tuple[str, str]] = ()  # step, duration
    facts: Mapping[str, str] = field(default_factory=dict)
    commands: Sequence[str] = ()


def write_report(report: Report, path: Path) -> None:
    """Write the page to `path`. If writing fails, no half-written file has that name."""
    write_whole(path, report_html(report))


def report_html(report: Report) -> str:
    """The page as HTML; every text is escaped."""
    pages = environment(Path(__file__).parent)
    pages.filters["hundredfold"] = lambda share: "–" if share is None else f"{100 * share:.1f}"
    pages.filters["data_uri"] = data_uri
    trained = list(report.curves)
    return pages.get_template(TEMPLATE).render(
        report=report,
        kinds=kinds,
        scale=_scale,
        curves=draw_curves(report.curves) if report.curves else "",
        colour=lambda name: (trained.index(name) + 1) % len(SERIES) if name in trained else 0,
    )


def _scale(rows: Sequence[ScoreRow]) -> float:
    """The score that a full bar stands for: 1, or the best score if it is larger, since CIDEr has no upper limit."""
    return max(1.0, *(row.accuracy(kind) or 0.0 for row in rows for kind in [None, *kinds(rows)]))
