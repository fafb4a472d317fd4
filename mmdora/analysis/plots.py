"""Draws the plots of an analysis as PNG bytes, with markers and with colours that the colour-blind can tell apart."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from statistics import fmean
from typing import Any

from matplotlib import colormaps, rc_context
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, NullLocator

from mmdora.analysis.findings import ALL, EVERY, QUERIES, Correlation, last_rows, number
from mmdora.analysis.rows import WeightRow
from mmdora.config import MODALITIES

# The colours of runs are the palette of Okabe and Ito; those of modalities are Paul Tol's muted scheme.
RUNS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
PARTS = {"vision": "#332288", "projector": "#DDCC77", "language": "#44AA99", "other": "#BBBBBB"}
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
INK, SOFT, GRID = "#1d1d1f", "#5d5d66", "#e6e4df"
STYLE: Any = {
    "font.size": 10,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": "#9a9aa2",
    "axes.titlesize": 10.5,
    "axes.titlelocation": "left",
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.formatter.limits": (-3, 4),
    "axes.formatter.use_mathtext": True,
    "grid.color": GRID,
    "xtick.color": SOFT,
    "ytick.color": SOFT,
    "figure.facecolor": "white",
    "legend.frameon": False,
}
DPI = 160
Place = tuple[str, int | None]
"""The place of a matrix in the network: name of a stack of layers and number of the layer, or its own name and None."""
SOME = 8
"""The most ticks, legend entries and checkpoints in a plot, so that their labels do not overlap."""


@rc_context(STYLE)
def scatter(rows: Sequence[WeightRow], measured: Sequence[Correlation]) -> bytes:
    """Scatter plot of dM over dD, as in the paper's figure 2: one row of panels per run, one panel per modality."""
    runs, parts = _runs(rows), _modalities(rows)
    figure, axes = figure_of(len(runs), len(parts), width=3.5, height=3.0, extra=1.5)
    steps = some(sorted({row.step for row in rows}, key=lambda step: (step is None, step)))
    palettes = {part: _palette(places(rows, part)) for part in parts}
    for run, line in zip(runs, axes, strict=True):
        for part, panel in zip(parts, line, strict=True):
            own = [row for row in rows if (row.run, row.modality) == (run, part) and row.delta_d is not None]
            for row in own:
                if row.step in steps:
                    _dot(panel, row, palettes[part][place(row)], MARKERS[steps.index(row.step)])
            # The padding lifts the title above the power of ten that matplotlib writes over the axis.
            panel.set_title(_headline(run, part, own, measured), y=1, pad=18)
            panel.set_xlabel("dD, change of direction")
            panel.margins(0.07)
        line[0].set_ylabel("dM, change of magnitude")
    markers = [_key(marker, "#77777f", _step(step)) for step, marker in zip(steps, MARKERS, strict=False)]
    markers.append(_key("o", "white", "black rim: query matrix", edge="black"))
    figure.legend(handles=markers, loc="outside upper center", ncols=min(5, len(markers)), fontsize=9)
    for part, panel in zip(parts, axes[-1], strict=True):
        labels = labelled(places(rows, part))
        keys = [_key("o", palettes[part][spot], labels[spot]) for spot in some(list(labels))]
        panel.legend(
            handles=keys, loc="upper center", bbox_to_anchor=(0.5, -0.24), ncols=4, fontsize=8.5, title="layer",
            title_fontsize=8.5, columnspacing=1, handletextpad=0.2,
        )  # fmt: skip
    return png(figure)


@rc_context(STYLE)
def shares(rows: Sequence[WeightRow]) -> bytes:
    """Bar plot of each modality's share in the squared norm of the whole change, at each run's last checkpoint."""
    runs = _runs(rows)
    figure, ((panel,),) = figure_of(1, 1, width=8.6, height=0.55 * len(runs), extra=1.15)
    for height, run in enumerate(runs):
        left = 0.0
        for part, colour in PARTS.items():
            share = sum(row.share for row in last_rows(rows, run) if row.modality == part)
            panel.barh(height, share, left=left, color=colour, height=0.62, edgecolor="white")
            if share >= 0.03:
                ink = "white" if part == "vision" else INK
                panel.text(left + share / 2, height, f"{share:.0%}", ha="center", va="center", color=ink)
            left += share
    panel.set_yticks(range(len(runs)), runs)
    panel.tick_params(axis="y", colors=INK, length=0)
    panel.invert_yaxis()
    panel.set_xlim(0, 1)
    panel.xaxis.set_major_formatter(lambda share, _: f"{share:.0%}")
    panel.grid(False, axis="y")
    panel.set_xlabel("share of the squared norm of the whole change")
    shown = [part for part in PARTS if any(row.modality == part for row in rows)]
    keys = [_key("s", PARTS[part], part) for part in shown]
    figure.legend(handles=keys, loc="outside upper center", ncols=len(keys))
    return png(figure)


@rc_context(STYLE)
def layers(rows: Sequence[WeightRow]) -> bytes:
    """Line plot of the mean dM and dD of the matrices of each layer, at each run's last checkpoint."""
    runs, parts = _runs(rows), _modalities(rows)
    figure, axes = figure_of(2, len(parts), width=3.5, height=2.6, extra=0.7)
    for line, field in zip(axes, ("delta_m", "delta_d"), strict=True):
        for part, panel in zip(parts, line, strict=True):
            spots = places(rows, part)
            for index, run in enumerate(runs):
                own = [row for row in last_rows(rows, run) if row.modality == part]
                values = [_mean(getattr(row, field) for row in own if place(row) == spot) for spot in spots]
                known = [(x, value) for x, value in enumerate(values) if value is not None]
                if known:
                    panel.plot(
                        *zip(*known, strict=True), color=RUNS[index % len(RUNS)], marker=MARKERS[index % len(MARKERS)],
                        markersize=5, linewidth=1.6,
                    )  # fmt: skip
            if panel.lines and all((line.get_ydata() > 0).all() for line in panel.lines):
                panel.set_yscale("log")
                panel.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
                panel.yaxis.set_minor_locator(NullLocator())
                panel.yaxis.set_major_formatter(lambda value, _: number(value))
            panel.set_title(f"{part}: {'dM, magnitude' if field == 'delta_m' else 'dD, direction'}")
            _name_places(panel, spots, names=field == "delta_d")
    keys = [_key(MARKERS[i % len(MARKERS)], RUNS[i % len(RUNS)], run, line="-") for i, run in enumerate(runs)]
    figure.legend(handles=keys, loc="outside upper center", ncols=min(6, len(keys)))
    return png(figure)


def _name_places(panel: Any, spots: Sequence[Place], *, names: bool) -> None:
    ticks, labels = some(range(len(spots))), list(labelled(spots).values())
    slanted = {"rotation": 25, "ha": "right", "rotation_mode": "anchor"} if max(map(len, labels)) > 4 else {}
    panel.set_xticks(ticks, [labels[tick] if names else "" for tick in ticks], **slanted)
    panel.set_xlim(-0.35, len(spots) - 0.65)
    if names:
        panel.set_xlabel("layer")


def place(row: WeightRow) -> Place:
    numbered = re.match(r"(.*?)\.(\d+)(\.|$)", row.name)
    return (numbered[1], int(numbered[2])) if numbered else (row.name, None)


def places(rows: Sequence[WeightRow], modality: str) -> list[Place]:
    """The places of a modality's matrices, in the order of the run that has the most of them."""
    matrices = [row for row in rows if row.modality == modality and row.delta_m is not None]
    by_run = [list(dict.fromkeys(place(row) for row in matrices if row.run == run)) for run in _runs(rows)]
    return list(dict.fromkeys(spot for spots in sorted(by_run, key=len, reverse=True) for spot in spots))


def labelled(spots: Sequence[Place]) -> dict[Place, str]:
    """Place -> its short name, which is only the number of the layer if there is only one stack of layers."""
    stacks = {stack for stack, number in spots if number is not None}

    def label(stack: str, number: int | None) -> str:
        if number is None:
            return stack.rpartition(".")[2]
        words = [word for word in stack.split(".") if word not in ("layers", "layer", "blocks", "block", "model")]
        return f"{words[-1]} {number}" if len(stacks) > 1 and words else str(number)

    return {spot: label(*spot) for spot in spots}


def _headline(run: str, part: str, own: Sequence[WeightRow], measured: Sequence[Correlation]) -> str:
    methods = {row.method for row in own}
    r = [c for c in measured if (c.run, c.modality, c.over) == (run, part, EVERY) and methods == {c.method}]
    return f"{run} · {part}" + (f"\nr = {r[0]}" if r else "\n" if any(c.modality != ALL for c in measured) else "")


def _dot(panel: Any, row: WeightRow, colour: Any, marker: str) -> None:
    query = row.name.rpartition(".")[2] in QUERIES
    panel.scatter(
        row.delta_d, row.delta_m, color=[colour], marker=marker, s=34 if query else 24, alpha=0.9 if query else 0.75,
        linewidths=1.0 if query else 0, edgecolors="black" if query else "none", zorder=3 if query else 2,
    )  # fmt: skip


def figure_of(lines: int, columns: int, *, width: float, height: float, extra: float) -> tuple[Any, Any]:
    figure = Figure(figsize=(width * columns, height * lines + extra), layout="constrained", dpi=DPI)
    return figure, figure.subplots(lines, columns, squeeze=False)


def png(figure: Any) -> bytes:
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png")
    return drawn.getvalue()


def _key(marker: str, colour: Any, label: str, *, line: Any = "", edge: Any = None) -> Any:
    return Line2D([], [], marker=marker, linestyle=line, color=colour, markeredgecolor=edge or colour, label=label)


def _palette(spots: Sequence[Place]) -> dict[Place, Any]:
    return {spot: colormaps["viridis"](0.93 * index / max(1, len(spots) - 1)) for index, spot in enumerate(spots)}


def some(items: Sequence[Any]) -> list[Any]:
    """At most `SOME` of the items, evenly spread, with the first and the last."""
    if len(items) <= SOME:
        return list(items)
    return [items[round(index * (len(items) - 1) / (SOME - 1))] for index in range(SOME)]


def _step(step: int | None) -> str:
    return "adapter" if step is None else f"step {step}"


def _mean(values: Any) -> float | None:
    known = [value for value in values if value is not None]
    return fmean(known) if known else None


def _runs(rows: Sequence[WeightRow]) -> list[str]:
    return list(dict.fromkeys(row.run for row in rows))


def _modalities(rows: Sequence[WeightRow]) -> list[str]:
    return [part for part in (*MODALITIES, "other") if any(r.modality == part and r.delta_m is not None for r in rows)]
