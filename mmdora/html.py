"""Functions for every HTML page of this package: the template engine, pictures inside the page, loss curves.

Nothing here imports torch.
"""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from mmdora.errors import MmdoraError
from mmdora.files import read_text

LOG = "log.jsonl"
"""The file of a run folder in which `mmdora train` keeps its losses."""
LOSS, EVAL_LOSS = "loss", "eval_loss"
"""The keys of the training loss and of the loss on held-out rows in the log."""
LOG_BYTES = 256 * 2**20
"""The most bytes of a file that is read as a log: more than a million steps, at about 150 bytes per step."""
SERIES = ("#010101", "#020202", "#030303", "#040404")
"""Placeholder colours of the curves. matplotlib knows no CSS variables, so it draws these, and they are then replaced
by the page's --c0, --c1, …"""
INK, GRID = "#0a0a0a", "#0b0b0b"
"""Placeholder colours of text and axes (replaced by --ink) and of grid lines (replaced by --line)."""


def environment(folder: Path) -> Environment:
    """The Jinja environment of every page: texts are escaped, and a name that the page was not given is an error.

    Args:
        folder: folder of the templates. A page that needs filters of its own adds them to the environment.
    """
    return Environment(
        loader=FileSystemLoader(folder),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def data_uri(content: bytes, mime: str = "image/png") -> str:
    """A `data:` URI that holds the content of a file, so that a page with this picture needs no other file.

    Args:
        mime: the media type of `content`, such as "image/jpeg".
    """
    return f"data:{mime};base64,{base64.b64encode(content).decode()}"


def curve(run: Path, loss: str = LOSS) -> list[tuple[int, float]]:
    """(step, loss) for every line with this loss, 0 included, in the log of a run folder.

    A last line without a line end is left out, since the run may still be writing it.

    Raises:
        MmdoraError: if there is no log, or its lines are not those of a run.
    """
    lines = read_text(run / LOG, "log", LOG_BYTES).split("\n")[:-1]
    try:
        entries = [json.loads(line) for line in lines if line]
        return [(int(entry["step"]), float(entry[loss])) for entry in entries if entry.get(loss) is not None]
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise MmdoraError(f"{run / LOG}: not the log of a run ({error!r})") from None


def draw_curves(
    curves: Mapping[str, Sequence[tuple[int, float]]],
    held_out: Mapping[str, Sequence[tuple[int, float]]] = MappingProxyType({}),
    *,
    width: float = 6.6,
) -> str:
    """Draw loss over steps as inline SVG in the page's own colours, for its light and its dark theme.

    The names of the curves are not drawn, because the page has a legend of its own.

    Args:
        held_out: name of a curve -> its loss on held-out rows, which is drawn dashed in the same colour.
        width: width in inches, at 12 points of text.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, LogLocator

    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "mmdora", "font.size": 12}):
        figure = Figure(figsize=(width, 3.1), layout="constrained")
        figure.patch.set_alpha(0)
        axes = figure.subplots()
        axes.patch.set_alpha(0)
        for index, (name, points) in enumerate(curves.items()):
            steps, losses = zip(*points, strict=True)
            colour = SERIES[(index + 1) % len(SERIES)]
            axes.plot(steps, losses, color=colour, linewidth=1.8)
            if name in held_out:
                axes.plot(*zip(*held_out[name], strict=True), "o--", color=colour, linewidth=1.4, markersize=3.5)
        if any(loss > 0 for points in curves.values() for _, loss in points):
            axes.set_yscale("log")  # A loss of 0 has no place on this axis, so the line leaves the plot there.
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            axes.yaxis.set_minor_formatter(FuncFormatter(lambda *_: ""))
        axes.set_xlabel("optimizer step", color=INK)
        axes.set_ylabel("loss" if held_out else "training loss", color=INK)
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
