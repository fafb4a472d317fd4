"""Scores of several models as tables for a terminal. No torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mmdora.evaluate.scoring.scorers import CIDER
from mmdora.evaluate.scoring.significance import Comparison

if TYPE_CHECKING:
    from rich.table import Table

MOST_KINDS = 6  # A terminal has room for as many columns; metrics.json has all.


@dataclass(frozen=True)
class ScoreRow:
    """A line of the score table; `scores` is what `Scores.to_dict` gives."""

    name: str
    scores: Mapping[str, Any]
    note: str = ""

    def accuracy(self, kind: str | None = None) -> float | None:
        """The score in [0, 1] over everything, or over one answer type; None if no question is of this type."""
        part = self.scores["overall"] if kind is None else self.scores["by_type"].get(kind)
        return part["score"] if part else None


def kinds(rows: Sequence[ScoreRow]) -> list[str]:
    """Answer types of the table, in the order of the scores."""
    return list(dict.fromkeys(kind for row in rows for kind in row.scores["by_type"]))


def scores_table(
    rows: Sequence[ScoreRow],
    title: str = "Accuracy, exact match of generated answers",
    comparisons: Mapping[str, Comparison] | None = None,
) -> Table:
    """A model per line: the task's number, that of each answer type, its interval.

    Args:
        comparisons: name -> how it differs from the first model, in further columns.

    Numbers are percent, CIDEr times 100 as papers print it.
    """
    from rich.table import Table

    columns = kinds(rows) if len(kinds(rows)) <= MOST_KINDS else []
    table = Table(title=title, title_justify="left")
    table.add_column("")
    for heading in ("overall", *columns, "95% interval", "questions"):
        table.add_column(heading, justify="right")
    if comparisons:
        test = next(iter(comparisons.values())).test
        for heading in (f"minus {rows[0].name}", "95% interval", f"p ({test})"):
            table.add_column(heading, justify="right")
    for row in rows:
        overall, sign = row.scores["overall"], "" if row.scores["metric"] == CIDER else "%"
        low, high = overall["interval95"]
        cells = [row.accuracy(), *(row.accuracy(kind) for kind in columns)]
        shown = ["–" if cell is None else f"{100 * cell:.1f}{sign}" for cell in cells]
        shown += [f"{100 * low:.1f} – {100 * high:.1f}", f"{overall['n']:,}"]
        if comparisons and row.name in comparisons:
            comparison = comparisons[row.name]
            low, high = comparison.interval
            shown += [
                f"{100 * comparison.difference:+.1f}",
                f"{100 * low:+.1f} – {100 * high:+.1f}",
                f"{comparison.p:.2g}",
            ]
        table.add_row(row.name, *shown)
    return table
