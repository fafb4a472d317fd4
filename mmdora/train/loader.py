"""Feeds each process its micro-batches, step by step; a resumed run gets the rows that an unbroken run would get."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from itertools import count, islice
from typing import Any

import torch
from accelerate.utils import send_to_device
from torch.utils.data import DataLoader
from transformers.trainer_utils import seed_worker

from mmdora.batches.fit import Rows
from mmdora.batches.order import Batches, spare_row
from mmdora.batches.packing import Packs
from mmdora.batches.sampler import GroupedSampler
from mmdora.batches.stream import Stream, StreamBatches
from mmdora.batches.tasks import TaskRows
from mmdora.config import RunConfig
from mmdora.errors import MmdoraError
from mmdora.train.processes import Processes


class Pieces:
    """Collates the rows of a micro-batch in pieces of at most `limit` rows.

    The limit lies in shared memory, so that loader processes see when it changes.
    """

    def __init__(self, collate: Any, limit: int):
        self.collate, self._limit = collate, torch.tensor(limit).share_memory_()

    @property
    def limit(self) -> int:
        return int(self._limit)

    @limit.setter
    def limit(self, rows: int) -> None:
        self._limit.fill_(rows)

    def __call__(self, rows: list[Any]) -> dict[str, Any]:
        limit = self.limit
        pieces = [self.collate(rows[start : start + limit]) for start in range(0, len(rows), limit)]
        return {"limit": limit, "pieces": pieces}


class Feed:
    """The micro-batches of this process, step by step.

    Args:
        collate: function that makes a batch of a list of rows.

    Attributes:
        batches: says which rows make up which micro-batch.
        pieces: collates each micro-batch in pieces that fit; only with `training.find_batch_size`.
    """

    def __init__(
        self,
        config: RunConfig,
        rows: Rows | TaskRows | Packs | Stream,
        collate: Callable[[list[Any]], dict[str, Any]],
        processes: Processes,
    ):
        self.rows, self.collate, self.processes = rows, collate, processes
        self.workers, self.accumulation = config.data.workers, config.training.accumulation
        self.batches = _batches(config, rows, processes)
        self.pieces = Pieces(collate, config.training.batch_size) if config.training.find_batch_size else None
        if self.pieces is not None and processes.sharded:
            raise MmdoraError(
                "training.find_batch_size cannot be used with FSDP or DeepSpeed, whose processes cannot repeat a step "
                "alone; leave it out"
            )

    @property
    def steps_per_epoch(self) -> int:
        return -(-self.batches.rounds // self.accumulation)

    @property
    def rows_per_step(self) -> float:
        """Rows per step in all processes. This is a mean, because the last step of a pass may have fewer rows."""
        if isinstance(self.batches, StreamBatches):
            return self.batches.size * self.accumulation * self.processes.count
        return len(self.rows) / self.steps_per_epoch  # pyright: ignore[reportArgumentType]

    def steps(self, done: int, restore: Callable[[], None]) -> Iterator[list[dict[str, Any]]]:
        """Yield the micro-batches of each step after the first `done`, on the device, without end.

        Args:
            restore: function that sets the random states to those stored after `done` steps. It is called once, at the
                point where an unbroken run had these states. At the start of a pass that is before the loader starts,
                because each loader draws a number when it starts. In the middle of a pass it is after the loader has
                started, because the number of this pass was drawn before the states were stored.
        """
        first = done % self.steps_per_epoch
        for epoch in count(done // self.steps_per_epoch):
            if not first:
                restore()
            batches = iter(self._loader(epoch, first))
            for step in range(first, self.steps_per_epoch):
                fetched = self._fetched(batches, step)
                if first:
                    restore()
                    first, restore = 0, _nothing
                yield fetched
            restore = _nothing

    def read(self, done: int, number: int) -> dict[str, Any]:
        """Read micro-batch `number` of the step after `done` again."""
        rows = [self.rows[index] for index in self.batches.of_round(self._round(done) + number, self.processes.index)]  # pyright: ignore
        return self._on_device((self.pieces or self.collate)(rows))

    def masked(self) -> dict[str, Any]:
        """A batch of the shortest row with all labels masked; it is a row with an image if there is any."""
        spare = spare_row(self.rows.lengths, self.rows.has_image, with_image=True)  # pyright: ignore
        return self._on_device(self.collate([self.rows[~spare]]))

    def probe(self) -> dict[str, Any] | None:
        """A batch of the shortest row, to try something on before the first step; None for a stream."""
        if not isinstance(self.batches, Batches):
            return None
        batch = self.collate([self.rows[self.batches.spare]])
        batch.pop("samples", None)
        return self._on_device(batch)

    def ids(self, done: int) -> list[str]:
        """The ids of all processes' rows in the step after `done`."""
        first = self._round(done)
        rounds = range(first, min(first + self.accumulation, self.batches.rounds))
        if isinstance(self.batches, StreamBatches):
            gathered = self.processes.gathered([self.batches.ids[number] for number in rounds])
            return [name for names in zip(*gathered, strict=True) for ids in names for name in ids]
        indices = [i for n in rounds for p in range(self.processes.count) for i in self.batches.of_round(n, p)]
        rows: list[Any] = [self.rows[index] for index in indices if index >= 0]
        return [str(row["id"]) for taken in rows for row in (taken if isinstance(taken, list) else [taken])]

    def _round(self, done: int) -> int:
        """The number of the first micro-batch of the step after `done`, in its epoch."""
        epoch, step = divmod(done, self.steps_per_epoch)
        self.batches.set_epoch(epoch)
        return step * self.accumulation

    def _loader(self, epoch: int, first: int) -> DataLoader[Any]:
        """This process's micro-batches of an epoch, from step `first` on."""
        self.batches.set_epoch(epoch)
        if isinstance(self.rows, TaskRows):
            self.rows.set_epoch(epoch)
        place, of = self.processes.index, self.processes.count
        return DataLoader(
            self.rows,  # pyright: ignore[reportArgumentType]
            # The micro-batches of all processes come in turn, and this process takes every `of`-th. A stream has to be
            # asked for all of them, because it counts them.
            batch_sampler=islice(self.batches, place + first * self.accumulation * of, None, of),  # pyright: ignore
            collate_fn=self.pieces or self.collate,
            num_workers=self.workers,
            pin_memory=torch.cuda.is_available(),
            worker_init_fn=partial(seed_worker, num_workers=self.workers, rank=place),
        )

    def _fetched(self, batches: Iterator[Any], step: int) -> list[dict[str, Any]]:
        wanted = min(self.accumulation, self.batches.rounds - step * self.accumulation)
        with self.processes.together():  # If one process cannot read a row, all processes stop.
            try:
                fetched = list(islice(batches, wanted))
            except MmdoraError as error:  # A loader process wraps the message in its traceback, which is cut off here.
                raise MmdoraError(str(error).rpartition(f"{MmdoraError.__name__}: ")[2].strip()) from None
        return [self._on_device(batch) for batch in fetched]

    def _on_device(self, batch: dict[str, Any]) -> dict[str, Any]:
        batch = send_to_device(batch, self.processes.device, non_blocking=torch.cuda.is_available())  # pyright: ignore
        if self.processes.deepspeed and self.processes.accelerator.mixed_precision == "bf16":
            # DeepSpeed converts the weights to bf16 instead of using autocast, so inputs have to be converted too.
            floating = {k: v for k, v in batch.items() if isinstance(v, torch.Tensor) and v.is_floating_point()}
            batch |= {name: value.bfloat16() for name, value in floating.items()}
        return batch


def _nothing() -> None:
    """Do nothing; takes the place of `restore` after it was called."""


def _batches(
    config: RunConfig, rows: Rows | TaskRows | Packs | Stream, processes: Processes
) -> Batches | StreamBatches:
    data, training = config.data, config.training
    if isinstance(rows, Stream):
        assert training.steps is not None
        ahead = 2 * data.workers + 1  # Each loader process prefetches two micro-batches.
        rounds = training.steps * training.accumulation
        return StreamBatches(rows, training.batch_size, rounds, training.accumulation + ahead)
    lengths = rows.lengths if data.group_by_length else None
    return Batches(
        GroupedSampler(
            len(rows), training.batch_size, training.seed, lengths, rows.has_image, getattr(rows, "tasks", None)
        ),
        training.batch_size,
        processes.count,
        rows.has_image,
        spare_row(rows.lengths, rows.has_image, processes.sharded),
        companions=processes.sharded,
    )
