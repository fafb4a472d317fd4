"""One self-contained HTML page (and a terminal table) from plain data: scores, curves, pictures with answers.

Nothing here knows torch or a model, and the page asks for nothing outside itself.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from rich.table import Table

TEMPLATE = "report.html.j2"
SERIES = ("#010101", "#020202", "#030303", "#040404")  # stand for the page's colours --c0 … until drawn
INK, GRID = "#0a0a0a", "#0b0b0b"


@dataclass(frozen=True)
class Row:
    """A line of the score table; `scores` is what `evaluate.metrics.Scores.to_dict` gives."""

    name: str
    scores: Mapping[str, Any]
    note: str = ""

    def accuracy(self, kind: str | None = None) -> float | None:
        """In [0, 1]; of everything, or of one answer type (None where the set has none of it)."""
        part = self.scores["overall"] if kind is None else self.scores["by_type"].get(kind)
        return part["score"] if part else None


@dataclass(frozen=True)
class Example:
    """A picture, a question about it, and what each model said: name -> (text, right or wrong)."""

    image: bytes  # PNG
    question: str
    answer: str
    answers: Mapping[str, tuple[str, bool]]


@dataclass(frozen=True)
class Report:
    """Everything the page shows; empty parts are left out."""

    title: str
    lead: str
    verdict: Sequence[str]
    rows: Sequence[Row]
    curves: Mapping[str, Sequence[tuple[int, float]]] = field(default_factory=dict)  # name -> (step, loss)
    galleries: Mapping[str, Sequence[Example]] = field(default_factory=dict)  # heading -> examples
    parity: Mapping[str, str] = field(default_factory=dict)  # export -> what was measured
    plans: Mapping[str, str] = field(default_factory=dict)  # run -> plan as text
    timing: Sequence[tuple[str, str]] = ()  # step, duration
    facts: Mapping[str, str] = field(default_factory=dict)
    commands: Sequence[str] = ()


def kinds(rows: Sequence[Row]) -> list[str]:
    """Answer types of the table, in the order of the scores."""
    return list(dict.fromkeys(kind for row in rows for kind in row.scores["by_type"]))


def write_report(report: Report, path: Path) -> None:
    """Render to `path` through a temporary file."""
    partial = path.with_suffix(".partial")
    partial.write_text(render(report), encoding="utf-8")
    partial.replace(path)


def render(report: Report) -> str:
    """The page as HTML; every text is escaped."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["percent"] = lambda share: "–" if share is None else f"{share:.1%}"
    environment.filters["data_uri"] = lambda png: "data:image/png;base64," + base64.b64encode(png).decode()
    trained = list(report.curves)
    return environment.get_template(TEMPLATE).render(
        report=report,
        kinds=kinds(report.rows),
        curves=draw_curves(report.curves) if report.curves else "",
        colour=lambda name: (trained.index(name) + 1) % len(SERIES) if name in trained else 0,
    )


def draw_curves(curves: Mapping[str, Sequence[tuple[int, float]]]) -> str:
    """Loss over steps as inline SVG whose colours are the page's own, so that light and dark both fit.

    Names of curves are not drawn: the legend is the page's.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "mmdora", "font.size": 12}):
        figure = Figure(figsize=(6.6, 3.1), layout="constrained")
        figure.patch.set_alpha(0)
        axes = figure.subplots()
        axes.patch.set_alpha(0)
        for index, points in enumerate(curves.values()):
            steps, losses = zip(*points, strict=True)
            axes.plot(steps, losses, color=SERIES[(index + 1) % len(SERIES)], linewidth=1.8)
        axes.set_yscale("log")
        axes.set_xlabel("optimizer step", color=INK)
        axes.set_ylabel("training loss", color=INK)
        axes.tick_params(which="both", colors=INK)
        axes.grid(True, color=GRID, linewidth=0.6)
        axes.set_axisbelow(True)
        for side, spine in axes.spines.items():
            spine.set_visible(side in ("left", "bottom"))
            spine.set_color(INK)
        drawn = io.StringIO()
        figure.savefig(drawn, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    svg = drawn.getvalue()
    svg = svg[svg.index("<svg") :]
    for index, colour in enumerate(SERIES):
        svg = svg.replace(colour, f"var(--c{index})")
    return svg.replace(INK, "var(--ink)").replace(GRID, "var(--line)")


def scores_table(rows: Sequence[Row], title: str = "Accuracy, exact match of generated answers") -> Table:
    """The score table for a terminal."""
    from rich.table import Table

    columns = kinds(rows)
    table = Table(title=title, title_justify="left")
    table.add_column("")
    for heading in ("all", *columns):
        table.add_column(heading, justify="right")
    table.add_column("95% interval (all)", justify="right")
    table.add_column("questions", justify="right")
    for row in rows:
        overall = row.scores["overall"]
        low, high = overall["interval95"]
        cells = [row.accuracy(), *(row.accuracy(kind) for kind in columns)]
        shown = ["–" if cell is None else f"{cell:.1%}" for cell in cells]
        table.add_row(row.name, *shown, f"{low:.1%} – {high:.1%}", f"{overall['n']:,}")
    return table


def paired_interval(
    first: Sequence[bool], second: Sequence[bool], groups: Sequence[str], *, resamples: int = 4000, seed: int = 0
) -> tuple[float, float]:
    """95% bootstrap interval of accuracy(second) - accuracy(first) on the same questions.

    Whole groups (pictures) are resampled: questions about one picture are not independent.

    Args:
        first, second: right or wrong per question; `groups` names the picture of each.

    Returns:
        Percentiles 2.5 and 97.5 of the difference, in [-1, 1].
    """
    names, inverse = np.unique(np.asarray(groups), return_inverse=True)
    difference = np.asarray(second, dtype=float) - np.asarray(first, dtype=float)
    sums, sizes = np.bincount(inverse, difference), np.bincount(inverse)
    random = np.random.default_rng(seed)
    chosen = random.integers(len(names), size=(resamples, len(names)))
    low, high = np.percentile(sums[chosen].sum(1) / sizes[chosen].sum(1), [2.5, 97.5])
    return float(low), float(high)
