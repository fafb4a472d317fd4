"""Deals the rows out to all processes such that each step learns the same rows, however many processes there are."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from mmdora.batches.sampler import NO_ROW, GroupedSampler


class Batches:
    """The micro-batches of an epoch, in the sampler's order of rows.

    Micro-batch 0 of process 0 comes first, then micro-batch 0 of process 1, and so on; then micro-batch 1 of process 0.
    P processes that accumulate G micro-batches of B rows learn in each step the rows that one process learns with
    P G micro-batches. At the end of an epoch there can be fewer rows than processes. A process without a row then gets
    the row `spare` with all labels masked. Every process thus takes part, and no row is learned twice (stock sharding
    repeats rows).

    Args:
        size: rows of a micro-batch, B.
        has_image: [rows] bool.
        spare: index of a row that fills empty micro-batches, best a short one. It is given out as ~spare (negative),
            which `Rows` masks.
        companions: whether a micro-batch without an image gets `spare` as well. Sharded parameters need this: every
            process has to run the same modules, the vision tower included.
    """

    def __init__(
        self,
        sampler: GroupedSampler,
        size: int,
        processes: int,
        has_image: np.ndarray,
        spare: int,
        companions: bool = False,
    ):
        self.sampler, self.size, self.processes = sampler, size, processes
        self.has_image, self.spare, self.companions = has_image, spare, companions

    def set_epoch(self, epoch: int) -> None:
        self.sampler.set_epoch(epoch)

    @property
    def rounds(self) -> int:
        """Micro-batches of each process in an epoch."""
        return -(-len(self.sampler) // (self.size * self.processes))

    def __len__(self) -> int:
        return self.rounds * self.processes

    def __iter__(self) -> Iterator[list[int]]:
        order = self.sampler.order()
        for number in range(len(self)):
            yield self._indices(order, number)

    def of_round(self, number: int, process: int) -> list[int]:
        """The indices of rows that a process gets in micro-batch `number` of the epoch."""
        return self._indices(self.sampler.order(), number * self.processes + process)

    def _indices(self, order: np.ndarray, number: int) -> list[int]:
        rows = order[number * self.size : (number + 1) * self.size]
        rows = rows[rows != NO_ROW]
        masked = [~self.spare] if not len(rows) or (self.companions and not self.has_image[rows].any()) else []
        return [*map(int, rows), *masked]


def spare_row(lengths: np.ndarray, has_image: np.ndarray, with_image: bool) -> int:
    """The index of the shortest row. With `with_image` only rows with an image count, if there are any."""
    chosen = np.flatnonzero(has_image) if with_image and has_image.any() else np.arange(len(lengths))
    return int(chosen[lengths[chosen].argmin()])
