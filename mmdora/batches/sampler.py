"""The order of the rows: it depends on seed and epoch only, so that a resumed run sees the same one.

The order is an array, in which a million rows take 4 MB; the lists of the stock samplers would take 90 MB.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from torch.utils.data import Sampler

WINDOW = 50  # Batches per window. Rows are sorted by length within a window only, so that much of the shuffle remains.
NO_ROW = -1  # Marks a place of a batch that stays empty; no row has a negative index.


class GroupedSampler(Sampler[int]):
    """Shuffled rows in batches of like length and modality (text-only rows apart from rows with images).

    Args:
        lengths: [rows] a measure of each row's length; only the order of the values matters. None gives a plain
            shuffle.
        has_image: [rows] bool.
        batch: rows per optimizer step and process; rows within such a batch are alike.
        tasks: [rows] number of each row's task. If given, a batch holds rows of one task, whatever their modality, and
            the last batch of a task is filled up with `NO_ROW`.
    """

    def __init__(
        self,
        rows: int,
        batch: int,
        seed: int,
        lengths: np.ndarray | None,
        has_image: np.ndarray,
        tasks: np.ndarray | None = None,
    ):
        self.rows, self.batch, self.seed = rows, batch, seed
        self.lengths, self.has_image, self.tasks = lengths, has_image, tasks
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        if self.tasks is None:
            return self.rows
        return int((-(-np.bincount(self.tasks) // self.batch)).sum()) * self.batch

    def __iter__(self) -> Iterator[int]:
        return map(int, self.order())

    def order(self) -> np.ndarray:
        """[len(self)] int32: every row once."""
        random = np.random.default_rng((self.seed, self.epoch))
        shuffled = random.permutation(np.arange(self.rows, dtype=np.int32))
        if self.tasks is not None:
            batches = np.concatenate(
                [self._batches(shuffled[self.tasks[shuffled] == task]) for task in np.unique(self.tasks)]
            )
            return batches[random.permutation(len(batches))].ravel()
        if self.lengths is None:
            return shuffled
        whole, rest = [], []
        for modality in (True, False):
            mine = shuffled[self.has_image[shuffled] == modality]
            for start in range(0, len(mine), self.batch * WINDOW):
                window = mine[start : start + self.batch * WINDOW]
                window = window[np.argsort(self.lengths[window], kind="stable")]
                full = len(window) // self.batch * self.batch
                whole.append(window[:full])
                rest.append(window[full:])
        if not rest:
            return shuffled
        batches = np.concatenate(whole).reshape(-1, self.batch)
        # The rows that are left over from each window do not fill a batch, so they go to the end of the epoch.
        return np.concatenate([batches[random.permutation(len(batches))].ravel(), *rest])

    def _batches(self, rows: np.ndarray) -> np.ndarray:
        """[batches, batch] int32: these shuffled rows as batches, sorted by length within each window."""
        if self.lengths is not None:
            windows = np.split(rows, range(self.batch * WINDOW, len(rows), self.batch * WINDOW))
            rows = np.concatenate([window[np.argsort(self.lengths[window], kind="stable")] for window in windows])
        return np.pad(rows, (0, -len(rows) % self.batch), constant_values=NO_ROW).reshape(-1, self.batch)
