"""Draws scores over learning rates, a picture for each study, as SVG that is the same for the same numbers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mmdora.files import write_whole
from mmdora.study.findings import Curve

COLUMNS = 3
SIZE = (3.2, 2.6)
"""Width and height of one task's axes in inches."""
MARKS = "os^vDPX*"
"""An arm has a mark beside its colour, so that lines are told apart without colours."""


def draw_curves(found: Sequence[Curve], path: Path) -> None:
    """Draw score over rate: axes for each base and task, a line for each arm, and its range within a point of the best.

    Args:
        path: the SVG file to write.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    places = list(dict.fromkeys((curve.base, curve.task) for curve in found))
    arms = list(dict.fromkeys(curve.arm for curve in found))
    rows = -(-len(places) // COLUMNS)
    with rc_context({"svg.hashsalt": "mmdora", "font.size": 9}):
        figure = Figure(figsize=(SIZE[0] * min(COLUMNS, len(places)), SIZE[1] * rows + 0.4), layout="constrained")
        axes = figure.subplots(rows, min(COLUMNS, len(places)), squeeze=False).ravel()
        for own, (base, task) in zip(axes, places, strict=False):
            there = [curve for curve in found if (curve.base, curve.task) == (base, task)]
            for curve in there:
                index = arms.index(curve.arm)
                rates, scores = zip(*curve.points, strict=True)
                own.plot(
                    rates,
                    [100 * score for score in scores],
                    marker=MARKS[index % len(MARKS)],
                    color=f"C{index}",
                    label=curve.arm,
                    linewidth=1.4,
                    markersize=4,
                )
                low, high = curve.range
                best = max(scores)
                own.plot([low, high], [100 * best + 1 + index / 2] * 2, color=f"C{index}", linewidth=3, alpha=0.5)
            own.set_xscale("log")
            shown = sorted({rate for curve in there for rate, _ in curve.points})
            own.set_xticks(shown, [f"{rate:g}" for rate in shown], rotation=45, fontsize=7)
            own.minorticks_off()
            own.set_title(f"{base}: {task}" if len({base for base, _ in places}) > 1 else task, fontsize=9)
            own.set_xlabel("peak learning rate")
            own.set_ylabel("test score, %")
            own.grid(True, linewidth=0.4, alpha=0.5)
        for own in axes[len(places) :]:
            own.set_visible(False)
        handles, labels = axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=min(4, len(arms)), frameon=False)
        write_whole(path, lambda partial: figure.savefig(partial, format="svg", metadata={"Date": None}))
