"""Applies the length limit to rows. An image is never cut: a long row loses whole turns, is dropped, or is refused."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch.utils.data import Dataset

from mmdora.batches.checked import check_rows
from mmdora.batches.lengths import shortened, token_counts
from mmdora.errors import MmdoraError
from mmdora.families import Family
from mmdora.records.reader import Records
from mmdora.records.row import Row, changed


@dataclass(frozen=True)
class Rows(Dataset[Row]):
    """The rows of a training set that fit into the length limit, in the order of the file."""

    records: Records
    index: np.ndarray  # [rows] int32 into records
    messages: np.ndarray  # [rows] int32: number of messages that are kept; 0 means all of them
    lengths: np.ndarray  # [rows] int32: tokens, or characters when there is no limit and nothing was counted
    has_image: np.ndarray  # [rows] bool
    dropped: int = 0
    shrunk: int = 0

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, index: int) -> Row:
        """Return a row. The index ~i (negative) gives row i with all its labels masked (see `Batches`)."""
        if index < 0:
            return changed(self[~index], masked=True)
        row = self.records[self.index[index]]
        kept = self.messages[index]
        return row if not kept else changed(row, messages=row["messages"][:kept])


def fit(records: Records, family: Family, max_length: int | None, policy: str) -> Rows:
    """Choose the rows to train on.

    Args:
        max_length: the limit in tokens per row, images included. With None no tokens are counted, and rows are
            grouped by their number of characters.
        policy: "error", "drop", or "shrink" (leave out turns from the end).

    Raises:
        MmdoraError: if a row is over the limit (policy "error"), if a row's first turn alone is over it (policy
            "shrink"), if no row is left, or if a record has no answer to learn.
    """
    records.check_answered()
    index = np.arange(len(records), dtype=np.int32)
    messages = np.zeros(len(records), dtype=np.int32)
    has_image = records.images > 0
    if max_length is None:
        check_rows(records, family)
        return Rows(records, index, messages, records.characters, has_image)
    lengths = token_counts(records, family)
    over = np.flatnonzero(lengths > max_length)
    if policy == "error" and len(over):
        raise MmdoraError(
            f"{records.path}: record {records[over[0]]['id']} has {lengths[over[0]]} tokens, over data.max_length"
            f" {max_length} ({len(over)} of {len(records)} are); raise it, or set data.too_long to drop or shrink"
        )
    if policy == "drop":
        fits = lengths <= max_length
        if not fits.any():
            raise MmdoraError(f"{records.path}: no record fits data.max_length {max_length}")
        return Rows(records, index[fits], messages[fits], lengths[fits], has_image[fits], dropped=len(over))
    if len(over):
        messages[over], lengths[over] = shortened(records, family, over, max_length).T
        if len(hopeless := over[messages[over] == 0]):
            raise MmdoraError(
                f"{records.path}: record {records[hopeless[0]]['id']} is over data.max_length {max_length} with its"
                f" first turn alone ({len(hopeless)} of {len(records)} are; images are never cut); raise the limit or"
                " set data.too_long: drop"
            )
    return Rows(records, index, messages, lengths, has_image, shrunk=len(over))
