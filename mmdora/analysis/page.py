"""Writes the files of an analysis: a CSV, pictures, and one HTML page with the pictures and tables."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import astuple, fields
from itertools import groupby
from pathlib import Path

from mmdora.analysis import plots
from mmdora.analysis.findings import (
    SHOWN,
    Correlation,
    conclusions,
    correlations,
    last_rows,
    number,
    summaries,
    verdicts,
)
from mmdora.analysis.ranks import ranks_map
from mmdora.analysis.rows import WeightRow
from mmdora.analysis.spread import spreads
from mmdora.html import data_uri, environment
from mmdora.outputs.written import Written
from mmdora.train.ranks import Ranks

CSV, PAGE, TEMPLATE = "decomposition.csv", "analysis.html", "page.html.j2"
PICTURES = ("scatter", "layers", "shares", "ranks")


def write(rows: Sequence[WeightRow], folder: Path, ranks: Mapping[str, Ranks]) -> None:
    """Write decomposition.csv, scatter.png, layers.png, shares.png, ranks.png if a run chose ranks, and analysis.html.

    Raises:
        MmdoraError: one of them is there, and is not an analysis's; `check` tells so before the work.
    """
    written = check(folder)
    table = io.StringIO(newline="")
    lines = csv.writer(table)
    lines.writerow(field.name for field in fields(WeightRow))
    lines.writerows(astuple(row) for row in rows)
    written.write(CSV, table.getvalue())
    measured = correlations(rows)
    pictures = {"scatter": plots.scatter(rows, measured), "layers": plots.layers(rows), "shares": plots.shares(rows)}
    if ranks:
        pictures["ranks"] = ranks_map(ranks)
    for name, png in pictures.items():
        written.write(f"{name}.png", png)
    written.write(PAGE, page_html(rows, measured, pictures))


def check(folder: Path) -> Written:
    """The folder, if no file of others lies there in the place of one that `write` writes.

    Raises:
        MmdoraError: one does.
    """
    written = Written(folder)
    written.check(CSV, PAGE, *(f"{name}.png" for name in PICTURES))
    return written


def page_html(rows: Sequence[WeightRow], measured: Sequence[Correlation], pictures: Mapping[str, bytes]) -> str:
    """The page as HTML; every text is escaped, and the page loads no other file.

    Args:
        pictures: "scatter", "layers", "shares" and, if a run chose ranks, "ranks" -> content of the PNG.
    """
    pages = environment(Path(__file__).parent)
    pages.filters["number"] = number
    runs = list(dict.fromkeys(row.run for row in rows))
    return pages.get_template(TEMPLATE).render(
        runs={run: last_rows(rows, run) for run in runs},
        steps={run: [step for step, _ in groupby(row.step for row in rows if row.run == run)] for run in runs},
        conclusions=conclusions(summaries(rows)),
        verdicts=verdicts(measured),
        spreads=spreads(rows),
        summaries=summaries(rows),
        correlations=[list(group) for _, group in groupby(measured, lambda c: (c.run, c.method, c.modality))],
        pictures={name: data_uri(png) for name, png in pictures.items()},
        shown=SHOWN,
        csv=CSV,
    )
