"""What every HTML page of this package is made with."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence

SERIES = ("#010101", "#020202", "#030303", "#040404")  # stand for the page's colours --c0 … until drawn
INK, GRID = "#0a0a0a", "#0b0b0b"


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
