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


def scores_table(rows: Sequence[ScoreRow], title: str = "Accuracy, exact match of generated answers") -> Table:
    """A table with a model per line: overall score, score of each answer type, and interval.

    Numbers are in percent; CIDEr is multiplied by 100, as in papers.
    """
    from rich.table import Table

    columns = kinds(rows) if len(kinds(rows)) <= MOST_KINDS else []
    table = Table(title=title, title_justify="left")
    table.add_column("", overflow="fold")
    for heading in ("overall", *columns, "95% interval", "questions"):
        table.add_column(heading, justify="right", overflow="fold")
    for row in rows:
        overall, sign = row.scores["overall"], "" if row.scores["metric"] == CIDER else "%"
        low, high = overall["interval95"]
        cells = [row.accuracy(), *(row.accuracy(kind) for kind in columns)]
        shown = ["–" if cell is None else f"{100 * cell:.1f}{sign}" for cell in cells]
        table.add_row(row.name, *shown, f"{100 * low:.1f} – {100 * high:.1f}", f"{overall['n']:,}")
    return table


def comparisons_table(comparisons: Mapping[tuple[str, str], Comparison]) -> Table:
    """A table with a pair of models per line: the difference in points, its interval, and how likely chance alone is.

    Names are folded and numbers are not, so that a p-value keeps its exponent in a terminal of 80 columns.

    Args:
        comparisons: (first model, second model) -> the second minus the first.
    """
    from rich.table import Table

    tests = list(dict.fromkeys(comparison.test for comparison in comparisons.values()))
    table = Table(title=f"Paired differences in points; p: {', '.join(tests)}", title_justify="left")
    table.add_column("", overflow="fold")
    for heading in ("points", "95% interval", "p"):
        table.add_column(heading, justify="right", no_wrap=True)
    for (first, second), comparison in comparisons.items():
        low, high = comparison.interval
        table.add_row(
            f"{second} minus {first}",
            f"{100 * comparison.difference:+.1f}",
            f"{100 * low:+.1f} – {100 * high:+.1f}",
            f"{comparison.p:.2g}",
        )
    return table
