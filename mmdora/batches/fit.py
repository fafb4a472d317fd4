"""Applies the length limit to rows, and checks that every row that is left can be learned.

An image is never cut: a long row loses whole turns, is dropped, or is refused.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from torch.utils.data import Dataset

from mmdora.batches.lengths import kept, key_of, shortened, token_counts
from mmdora.errors import MmdoraError
from mmdora.families import Family
from mmdora.families.boxes import boxed
from mmdora.files import sha256
from mmdora.records.images import image_size
from mmdora.records.reader import Records
from mmdora.records.row import Row, changed, naming, videos_of
from mmdora.records.videos import sampling


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


def fit(
    records: Records, family: Family, max_length: int | None, policy: str, boxes: Mapping[Any, str] | None = None
) -> Rows:
    """Choose the rows to train on, and check each of them, so that none stops the run when its turn comes.

    Args:
        max_length: the limit in tokens per row, images included. With None no tokens are counted, and rows are
            grouped by their number of characters.
        policy: "error", "drop", or "shrink" (leave out turns from the end).
        boxes: the config's `data.boxes`.

    Raises:
        MmdoraError: if a row is over the limit (policy "error"), if a row's first turn alone is over it (policy
            "shrink"), if no row is left, or naming the first record that cannot be learned: it has no answer, the
            family cannot read it, its answers cannot be told from its prompts, or an image or features are missing.
    """
    records.check_answered()
    records = boxed(family.processor, records, boxes)
    _check_frames(records, family)
    rows = _within(records, family, max_length, policy)
    _check(rows, family, pictures=max_length is None)
    return rows


def _check_frames(records: Records, family: Family) -> None:
    """Raise an MmdoraError if videos have different numbers of frames, and the model wants a batch of equal ones."""
    counts = np.unique(records.frames[records.frames != 0])
    if family.videos is not None and (len(counts) > 1 or -1 in counts) and family.videos.alike:
        first = records[int(np.flatnonzero((records.frames != 0) & (records.frames != counts[-1]))[0])]
        raise MmdoraError(
            f"{records.path}: record {first['id']} shows another number of frames than other records, and this model "
            "takes equally many from all videos of a batch; give all the same 'frames'"
        )


def _check(rows: Rows, family: Family, *, pictures: bool) -> None:
    """Raise an MmdoraError that names the first row that cannot be learned.

    The rows are checked on all cores. What was found is kept beside the records' table like counts of tokens, so the
    next run on the same rows skips the check.

    Args:
        pictures: whether to read the headers of all images and videos too, which counting tokens does otherwise.
    """
    chosen = sha256(rows.index.tobytes() + rows.messages.tobytes() + bytes([pictures]))[:8]
    name = f"learnable-{chosen}-{key_of(rows.records, family)}"
    kept(rows.records, name, np.arange(len(rows)), partial(_checked, family, pictures), "check rows", rows)


def _checked(family: Family, pictures: bool, rows: Sequence[Row]) -> np.ndarray:
    """[rows] bool, all True."""
    family.check_learnable(rows)
    videos = family.videos
    for row in rows:
        with naming(row):
            if row["features"] is not None:
                _ = row["features"].path
            for image in row["images"] if pictures else ():
                image_size(image)
            if pictures and videos is not None:
                for video in videos_of(row):
                    videos.check(sampling(video))
    return np.ones(len(rows), dtype=bool)


def _within(records: Records, family: Family, max_length: int | None, policy: str) -> Rows:
    """The rows that are within the limit, unchecked; the rest as in `fit`."""
    index = np.arange(len(records), dtype=np.int32)
    messages = np.zeros(len(records), dtype=np.int32)
    has_image = records.images > 0
    if max_length is None:
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
