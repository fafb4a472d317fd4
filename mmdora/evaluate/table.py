"""Makes tables of the scores of several models for a terminal. This module imports no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mmdora.evaluate.scoring.scorers import CIDER
from mmdora.evaluate.scoring.significance import Comparison

if TYPE_CHECKING:
    from rich.table import Table

MOST_KINDS = 6  # The most columns of answer types, as a terminal has no room for more.


@dataclass(frozen=True)
class ScoreRow:
    """A line of the score table; `scores` is the result of `Scores.to_dict`."""

    name: str
    scores: Mapping[str, Any]
    note: str = ""

    def accuracy(self, kind: str | None = None) -> float | None:
        """The score in [0, 1] over everything, or over one answer type; None if no question is of this type."""
        part = self.scores["overall"] if kind is None else self.scores["by_type"].get(kind)
        return part["score"] if part else None


def kinds(rows: Sequence[ScoreRow]) -> list[str]:
    """The answer types that occur in the rows, in the order of their scores."""
    return list(dict.fromkeys(kind for row in rows for kind in row.scores["by_type"]))


def scores_table(
    rows: Sequence[ScoreRow],
    title: str = "Accuracy, exact match of generated answers",
    comparisons: Mapping[str, Comparison] | None = None,
) -> Table:
    """A table with a model per line: overall score, score of each answer type, and interval.

    Numbers are in percent; CIDEr is multiplied by 100, as in papers.

    Args:
        comparisons: name of a model -> its comparison with the first model, shown in further columns.
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
