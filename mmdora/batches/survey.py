"""Shows, before training, how long the rows of a file are and how much padding each way of batching would add."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from rich.console import Group
from rich.table import Table
from rich.text import Text

from mmdora.batches.fit import Rows
from mmdora.batches.lengths import image_token_counts, token_counts
from mmdora.batches.packing import Packs
from mmdora.batches.sampler import GroupedSampler
from mmdora.config import RunConfig
from mmdora.errors import MmdoraError
from mmdora.families import Family
from mmdora.records.reader import Records

BINS, BAR, NAMED = 12, 40, 5  # Lines of the histogram; characters of its longest bar; most ids of long rows.


@dataclass(frozen=True)
class LengthSurvey:
    """The lengths of the rows of a file, in tokens of one model.

    Attributes:
        lengths: [rows] int: tokens of each row, images included.
        image_tokens: [rows] int: image tokens of each row.
        over: ids of the first rows over the limit.
        padding: way of batching -> share of an epoch's tokens that are padding, from 0 to 1.
    """

    path: str
    lengths: np.ndarray
    image_tokens: np.ndarray
    limit: int | None
    over: tuple[str, ...]
    padding: dict[str, float]
    batch: int


def survey(records: Records, family: Family, config: RunConfig) -> LengthSurvey:
    """Count the tokens of every row and the padding in batches. The counts are kept for the training run.

    Raises:
        MmdoraError: if an image cannot be read (the message names the record), or if no row is within the limit.
    """
    data, training = config.data, config.training
    lengths, image_tokens = token_counts(records, family), image_token_counts(records, family)
    fits = np.flatnonzero(lengths <= (data.max_length or lengths.max()))
    over = np.flatnonzero(lengths > (data.max_length or lengths.max()))
    if not len(fits):
        raise MmdoraError(f"{records.path}: no record fits data.max_length {data.max_length}")
    rows = Rows(records, fits, np.zeros_like(fits), lengths[fits], image_tokens[fits] > 0)
    return LengthSurvey(
        path=str(records.path),
        lengths=lengths,
        image_tokens=image_tokens,
        limit=data.max_length,
        over=tuple(str(records[int(row)]["id"]) for row in over[:NAMED]),
        padding=dict(_padding(rows, training.batch_size, training.seed, data.max_length)),
        batch=training.batch_size,
    )


def filling(lengths: np.ndarray, batch: int) -> float:
    """Share of padding, from 0 to 1, if rows are batched in this order and padded to the longest row of their batch."""
    padded = sum(int(part.max()) * len(part) for part in np.split(lengths, range(batch, len(lengths), batch)))
    return 1 - int(lengths.sum()) / padded


def _padding(rows: Rows, batch: int, seed: int, limit: int | None) -> Iterator[tuple[str, float]]:
    for name, lengths in (("in any order", None), ("grouped by length", rows.lengths)):
        order = GroupedSampler(len(rows), batch, seed, lengths, rows.has_image).order()
        yield name, filling(rows.lengths[order], batch)
    if limit is not None:
        try:
            packs = Packs(rows, limit, seed)
        except MmdoraError:  # No two rows fit together, so packing has nothing to show.
            return
        order = GroupedSampler(len(packs), batch, seed, packs.lengths, packs.has_image).order()
        yield f"packed, {len(rows) / len(packs):.1f} rows in one", filling(packs.lengths[order], batch)


def drawing(shown: LengthSurvey) -> Group:
    """The survey for a terminal: figures, a histogram of lengths, and the padding."""
    lengths, images = shown.lengths, shown.image_tokens
    quantiles = np.quantile(lengths, [0.5, 0.95], method="higher").astype(int)
    pictured = int((images > 0).sum())
    lines = [
        f"{shown.path}: {len(lengths):,} rows, {pictured:,} with images; {lengths.sum():,} tokens, "
        f"{images.sum() / lengths.sum():.1%} of them images'",
        f"tokens of a row: {lengths.min():,} to {lengths.max():,}, median {quantiles[0]:,}, 95% below {quantiles[1]:,}",
    ]
    if pictured:
        mine = images[images > 0]
        lines.append(f"image tokens of a row that has any: {mine.min():,} to {mine.max():,}")
    parts: list[Any] = [Text("\n".join(lines)), Text(""), histogram(lengths, shown.limit), Text("")]
    if shown.limit is not None:
        count = int((lengths > shown.limit).sum())
        named = f": {', '.join(shown.over)}{', …' if count > len(shown.over) else ''}" if count else ""
        parts.append(Text(f"over data.max_length {shown.limit:,}: {count:,} rows{named}", "red" if count else ""))
    shares = "; ".join(f"{name} {share:.1%}" for name, share in shown.padding.items())
    parts.append(Text(f"padding in batches of {shown.batch}: {shares}"))
    return Group(*parts)


def histogram(lengths: np.ndarray, limit: int | None = None) -> Table:
    """A histogram of the rows by length; bars over the limit are red."""
    low, high = int(lengths.min()), int(lengths.max())
    width = max(-(-(high + 1 - low) // BINS), 1)
    edges = np.arange(low, high + width + 1, width)
    counts, edges = np.histogram(lengths, edges)
    table = Table(box=None, pad_edge=False)
    table.add_column("tokens", justify="right")
    table.add_column("rows", justify="right")
    table.add_column("")
    for count, first in zip(counts, edges, strict=False):
        last = int(first) + width - 1
        style = "red" if limit is not None and last > limit else "cyan"
        bar = Text("█" * round(BAR * count / counts.max()) or ("▏" if count else ""), style)
        table.add_row(f"{int(first):,} … {last:,}", f"{count:,}", bar)
    return table
