"""The files of an analysis: a CSV, three pictures, and one HTML page that holds them and the tables."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import astuple, fields
from itertools import groupby
from pathlib import Path

from mmdora.analysis import plots
from mmdora.analysis.findings import SHOWN, Correlation, correlations, last_rows, number, summaries, verdicts
from mmdora.analysis.rows import WeightRow
from mmdora.html import data_uri, environment

CSV, PAGE, TEMPLATE = "decomposition.csv", "analysis.html", "page.html.j2"


def write(rows: Sequence[WeightRow], folder: Path) -> None:
    """Write decomposition.csv, scatter.png, layers.png, shares.png and analysis.html."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / CSV).open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(field.name for field in fields(WeightRow))
        table.writerows(astuple(row) for row in rows)
    measured = correlations(rows)
    pictures = {"scatter": plots.scatter(rows, measured), "layers": plots.layers(rows), "shares": plots.shares(rows)}
    for name, png in pictures.items():
        (folder / f"{name}.png").write_bytes(png)
    (folder / PAGE).write_text(page_html(rows, measured, pictures), encoding="utf-8")


def page_html(rows: Sequence[WeightRow], measured: Sequence[Correlation], pictures: Mapping[str, bytes]) -> str:
    """The page as HTML; every text is escaped, and it asks for nothing outside itself.

    Args:
        pictures: scatter, layers and shares, as PNG.
    """
    pages = environment(Path(__file__).parent)
    pages.filters["number"] = number
    runs = list(dict.fromkeys(row.run for row in rows))
    return pages.get_template(TEMPLATE).render(
        runs={run: last_rows(rows, run) for run in runs},
        steps={run: [step for step, _ in groupby(row.step for row in rows if row.run == run)] for run in runs},
        verdicts=verdicts(measured),
        summaries=summaries(rows),
        correlations=[list(group) for _, group in groupby(measured, lambda c: (c.run, c.method, c.modality))],
        pictures={name: data_uri(png) for name, png in pictures.items()},
        shown=SHOWN,
        csv=CSV,
    )
