"""Rows that are read one after another, for data too large for the disk: their order, and their batches.

Only a few rows are in memory.

The rows that a process learns, and their order, depend on the files, the seed, the buffer, the number of processes and
the version of `datasets`, which shuffles and splits. To resume, a run reads the rows that it has already learned once
more, without decoding their images, because the buffer of rows would be too large for a checkpoint.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator
from itertools import count, islice
from typing import Any

from torch.utils.data import Dataset

from mmdora.batches.lengths import shorten
from mmdora.batches.shards import Shards, rows_of
from mmdora.config import Data
from mmdora.errors import MmdoraError
from mmdora.families import Family
from mmdora.families.boxes import BoxRule
from mmdora.records.record import content_of
from mmdora.records.row import Row, changed, naming

BUFFER = 1000
"""Rows in the shuffle buffer if the config sets none. All are in memory, with their images if those are packed."""

Admit = Callable[[Row], Row | None]


class Stream(Dataset[Row]):
    """The rows of one process, endlessly: after the last row of its share the stream is shuffled anew.

    In each pass every row comes once, in one process. If the number of files can be divided by the number of processes,
    each process reads whole files; else each takes every n-th row of all of them. The main process reads and shuffles.
    It hands the rows themselves to loader processes (a row is its own index in this dataset), so that the number of
    loader processes does not change the order.

    Args:
        admit: a function that gives the row to learn, or None to leave the row out.
        buffer: number of rows that are shuffled together; the order of the files is shuffled too.
    """

    def __init__(
        self,
        shards: Shards,
        admit: Admit,
        *,
        buffer: int,
        seed: int,
        process: int = 0,
        processes: int = 1,
        max_turns: int | None = None,
    ):
        from datasets import IterableDataset
        from datasets.distributed import split_dataset_by_node

        source = {"files": shards.files, "root": shards.root, "max_turns": max_turns}
        rows: Any = IterableDataset.from_generator(rows_of, gen_kwargs=source)
        self.shards, self.admit, self.process, self.processes = shards, admit, process, processes
        self._rows: Any = split_dataset_by_node(rows.shuffle(seed=seed, buffer_size=buffer), process, processes)

    def __getitem__(self, index: Any) -> Row:
        """The row, which is its own index."""
        return index

    def __iter__(self) -> Iterator[Row]:
        for number in count():
            rows = self.one_pass(number)
            first = next(rows, None)
            if first is None:
                who = f"process {self.process} of {self.processes} gets" if self.processes > 1 else "holds"
                raise MmdoraError(f"{self.shards.place}: {who} no row to learn; give more, or raise data.max_length")
            yield first
            yield from rows

    def one_pass(self, number: int) -> Iterator[Row]:
        """Every admitted row of this process's share, once."""
        self._rows.set_epoch(number)
        yield from (row for row in map(self.admit, self._rows) if row is not None)


class StreamBatches:
    """The micro-batches of a stream, for the loader: lists of rows, where `Batches` gives lists of indices.

    As in `Batches`, micro-batch 0 of process 0 comes first, then that of process 1. The micro-batches of other
    processes are empty lists here, because nobody reads them. The whole run counts as one epoch.

    Args:
        size: rows of a micro-batch.
        rounds: micro-batches of each process in the run.
        remembered: number of micro-batches whose ids are kept; it has to cover those that loaders read ahead.
    """

    def __init__(self, stream: Stream, size: int, rounds: int, remembered: int):
        self.stream, self.size, self.rounds, self.remembered = stream, size, rounds, remembered
        self.ids: dict[int, list[str]] = {}  # number of the micro-batch -> ids of its rows

    def set_epoch(self, epoch: int) -> None:
        """Do nothing, because the stream itself counts its passes."""

    def __len__(self) -> int:
        return self.rounds * self.stream.processes

    def __iter__(self) -> Iterator[list[Row]]:
        rows = iter(self.stream)
        for number in range(self.rounds):
            batch = list(islice(rows, self.size))
            self.ids[number] = [row["id"] for row in batch]
            self.ids.pop(number - self.remembered, None)
            yield from (batch if process == self.stream.process else [] for process in range(self.stream.processes))


def admit(
    row: Row, *, family: Family, data: Data, apart: Collection[str], contents: Collection[int] = ()
) -> Row | None:
    """Return the row as it is learned, or None to leave it out. `fit` does the same for a file of known rows.

    Args:
        data: gives the length limit, the policy for longer rows, and `max_turns`. If rows are pieces of a conversation,
            their ids end in "#" and a number.
        apart: ids of the records that are held out for evaluation.
        contents: their contents, as `content_of` gives them. The content of a row that is a piece is not known.

    Raises:
        MmdoraError: naming the record, if it is held out, if the family cannot learn it, or if it is too long.
    """
    name = row["id"]
    if name in apart or (data.max_turns is not None and re.sub(r"#\d+$", "", name) in apart):
        raise MmdoraError(f"data.eval: the stream holds its record {name!r} too; hold out other records")
    if contents and content_of(row) in contents:
        raise MmdoraError(
            f"data.eval: holds the messages and images of record {name!r} of the stream; take it out of one"
        )
    with naming(row):
        row = BoxRule.of(family.processor, data.boxes).written(row)
        family.check_row(row)
        family.check_pictures(row["messages"], len(row["images"]))
    if data.max_length is None:
        return row
    length = int(family.count_tokens([row])[0])
    if length <= data.max_length:
        return row
    if data.too_long == "drop":
        return None
    shrinks = data.too_long == "shrink"
    kept, _ = shorten(family, data.max_length, row) if shrinks else (0, 0)
    if not kept:
        more = " with its first turn alone (images are never cut)" if shrinks else f" ({length} tokens)"
        other = "drop" if shrinks else "drop or shrink"
        raise MmdoraError(
            f"record {name} is over data.max_length {data.max_length}{more}; raise it, or set data.too_long to {other}"
        )
    return changed(row, messages=row["messages"][:kept])
