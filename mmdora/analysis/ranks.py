"""Draws the ranks that a budget was spread over: maps of layers and kinds of matrices, by run and modality."""

from __future__ import annotations

import re
from collections.abc import Mapping

from matplotlib import rc_context

from mmdora.analysis.plots import STYLE, figure_of, labelled, png, some
from mmdora.config import MODALITIES
from mmdora.train.ranks import Ranks

NUMBERED = 24
"""The most layers of a map of which every field bears its rank as a number; beyond it the colour alone tells."""


@rc_context(STYLE)
def ranks_map(runs: Mapping[str, Ranks]) -> bytes:
    """Draw the maps as PNG: a row of panels per run, a panel per modality; white is a matrix without an adapter."""
    parts = [part for part in MODALITIES if any(_of(ranks, part) for ranks in runs.values())]
    tallest = max(len(_leaves(_of(ranks, part))) for ranks in runs.values() for part in parts)
    figure, axes = figure_of(len(runs), len(parts), width=4.2, height=0.32 * tallest + 1.1, extra=0.3)
    for (run, ranks), line in zip(runs.items(), axes, strict=True):
        most = max(ranks.of_modules.values())
        for part, panel in zip(parts, line, strict=True):
            own = _of(ranks, part)
            if not own:
                panel.set_axis_off()
                continue
            spots, leaves = list(dict.fromkeys(_split(name)[0] for name in own)), _leaves(own)
            field = [[float("nan")] * len(spots) for _ in leaves]
            for name, rank in own.items():
                spot, leaf = _split(name)
                row, column = leaves.index(leaf), spots.index(spot)
                field[row][column] = rank or float("nan")
                if len(spots) <= NUMBERED:
                    ink = "white" if rank > 0.6 * most else "black"
                    panel.text(column, row, str(rank), ha="center", va="center", fontsize=8, color=ink)
            panel.imshow(field, cmap="viridis_r", vmin=0, vmax=most, aspect="auto")
            panel.set_yticks(range(len(leaves)), leaves)
            labels = list(labelled(spots).values())
            ticks = some(range(len(spots)))
            panel.set_xticks(ticks, [labels[tick] for tick in ticks])
            panel.grid(False)
            panel.set_title(f"{run} · {part}: ranks, of {ranks.budget}")
            panel.set_xlabel("layer")
    return png(figure)


def _of(ranks: Ranks, part: str) -> dict[str, int]:
    return {name: module["rank"] for name, module in ranks.modules.items() if module["modality"] == part}


def _split(name: str) -> tuple[tuple[str, int | None], str]:
    """The place of a matrix, a stack of layers and a number, and its own name there."""
    if numbered := re.match(r"(.*?)\.(\d+)\.(.+)", name):
        return (numbered[1], int(numbered[2])), numbered[3].rpartition(".")[2]
    path, _, leaf = name.rpartition(".")
    return (path, None), leaf


def _leaves(own: Mapping[str, int]) -> list[str]:
    return list(dict.fromkeys(_split(name)[1] for name in own))
