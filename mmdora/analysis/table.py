"""Shows an analysis as a table in a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from mmdora.analysis.findings import EVERY, correlations, number, summaries
from mmdora.analysis.rows import WeightRow

if TYPE_CHECKING:
    from rich.table import Table


def analysis_table(rows: Sequence[WeightRow]) -> Table:
    """A table with a line for each run, modality and method.

    Its columns are the share of the change, means of dM and dD, the median effective rank, and r over all checkpoints.
    """
    from rich.markup import escape
    from rich.table import Table

    table = Table(
        title="What was changed, at the last checkpoint", title_justify="left", box=None, padding=(0, 2, 0, 0)
    )
    for heading in ("run", "what"):
        table.add_column(heading, no_wrap=True)
    for heading in ("share", "dM", "dD", "rank", "r(dM, dD)"):
        table.add_column(heading, justify="right", no_wrap=True)
    r = {(c.run, c.method, c.modality): c for c in correlations(rows) if c.over == EVERY}
    for s in summaries(rows):
        correlation = str(r.get((s.run, s.method, s.modality), "–"))
        shown = map(number, (s.delta_m, s.delta_d, s.effective_rank))
        table.add_row(escape(s.run), f"{s.modality} {s.method}", f"{s.share:.1%}", *shown, correlation)
    return table
