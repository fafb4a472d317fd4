"""The batches of all processes: a function of the order of the rows, so that their number changes no step."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from mmdora.batches.sampler import NO_ROW, GroupedSampler


class Batches:
    """Micro-batch 0 of process 0, of process 1, …, then micro-batch 1 of process 0: rows in the sampler's order.

    P processes that accumulate G micro-batches of B rows learn in each step the rows that one process learns with
    P G micro-batches. Where the last rows of an epoch are fewer than processes, one without a row gets the row
    `spare` with nothing to learn: no row is learned twice, as stock sharding has it, and every process takes part.

    Args:
        size: rows of a micro-batch, B.
        has_image: [rows] bool.
        spare: a row, best a short one; indices given out as ~spare (negative) are masked (`Rows`).
        companions: a micro-batch without an image gets `spare` as well, masked. Where parameters are sharded, every
            process has to run the same modules, the tower too.
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
        """What a process gets in micro-batch `number` of the epoch."""
        return self._indices(self.sampler.order(), number * self.processes + process)

    def _indices(self, order: np.ndarray, number: int) -> list[int]:
        rows = order[number * self.size : (number + 1) * self.size]
        rows = rows[rows != NO_ROW]
        masked = [~self.spare] if not len(rows) or (self.companions and not self.has_image[rows].any()) else []
        return [*map(int, rows), *masked]


def spare_row(lengths: np.ndarray, has_image: np.ndarray, with_image: bool) -> int:
    """The shortest row, of those with an image where that is wanted and there are any."""
    chosen = np.flatnonzero(has_image) if with_image and has_image.any() else np.arange(len(lengths))
    return int(chosen[lengths[chosen].argmin()])
