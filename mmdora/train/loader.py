"""Which rows each step learns: the same ones after a resume, in every process its own."""

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
    """Collates the rows of a micro-batch in pieces of at most `limit` rows, which loader processes see change."""

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
        collate: list of rows -> batch.

    Attributes:
        batches: the order: which rows make up which micro-batch.
        pieces: with `training.find_batch_size`, what collates each micro-batch in pieces that fit.
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
            raise MmdoraError("training.find_batch_size: not with FSDP or DeepSpeed, whose processes cannot step apart")

    @property
    def steps_per_epoch(self) -> int:
        return -(-self.batches.rounds // self.accumulation)

    @property
    def rows_per_step(self) -> float:
        """Of all processes; the mean, as the last step of a pass may have fewer."""
        if isinstance(self.batches, StreamBatches):
            return self.batches.size * self.accumulation * self.processes.count
        return len(self.rows) / self.steps_per_epoch  # pyright: ignore[reportArgumentType]

    def steps(self, done: int, restore: Callable[[], None]) -> Iterator[list[dict[str, Any]]]:
        """The micro-batches of each step after the first `done`, on the device; without end.

        Args:
            restore: sets the random numbers to what they were after `done` steps. It is called once, where the run
                that went on without a stop has drawn as many: each pass draws one number when its loader starts, and
                in the middle of a pass that lies before the numbers were stored.
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
        """Micro-batch `number` of the step after `done`, read again."""
        rows = [self.rows[index] for index in self.batches.of_round(self._round(done) + number, self.processes.index)]  # pyright: ignore
        return self._on_device((self.pieces or self.collate)(rows))

    def masked(self) -> dict[str, Any]:
        """The shortest row with an image, if there are any, with nothing to learn in it."""
        spare = spare_row(self.rows.lengths, self.rows.has_image, with_image=True)  # pyright: ignore
        return self._on_device(self.collate([self.rows[~spare]]))

    def probe(self) -> dict[str, Any] | None:
        """The shortest row, by which something can be tried before the first step; None of a stream."""
        if not isinstance(self.batches, Batches):
            return None
        batch = self.collate([self.rows[self.batches.spare]])
        batch.pop("samples", None)
        return self._on_device(batch)

    def ids(self, done: int) -> list[str]:
        """Ids of the rows of the step after `done`, of all processes."""
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
            # those of all processes come in turn; the reader of a stream is asked for all, since it counts them
            batch_sampler=islice(self.batches, place + first * self.accumulation * of, None, of),  # pyright: ignore
            collate_fn=self.pieces or self.collate,
            num_workers=self.workers,
            pin_memory=torch.cuda.is_available(),
            worker_init_fn=partial(seed_worker, num_workers=self.workers, rank=place),
        )

    def _fetched(self, batches: Iterator[Any], step: int) -> list[dict[str, Any]]:
        wanted = min(self.accumulation, self.batches.rounds - step * self.accumulation)
        with self.processes.together():  # a row that cannot be read stops all
            try:
                fetched = list(islice(batches, wanted))
            except MmdoraError as error:  # a loader process wraps the line in its traceback
                raise MmdoraError(str(error).rpartition(f"{MmdoraError.__name__}: ")[2].strip()) from None
        return [self._on_device(batch) for batch in fetched]

    def _on_device(self, batch: dict[str, Any]) -> dict[str, Any]:
        batch = send_to_device(batch, self.processes.device, non_blocking=torch.cuda.is_available())  # pyright: ignore
        if self.processes.deepspeed and self.processes.accelerator.mixed_precision == "bf16":
            # DeepSpeed converts the weights themselves, where autocast would have converted the pictures
            floating = {k: v for k, v in batch.items() if isinstance(v, torch.Tensor) and v.is_floating_point()}
            batch |= {name: value.bfloat16() for name, value in floating.items()}
        return batch


def _nothing() -> None:
    """`restore` after it was called."""


def _batches(
    config: RunConfig, rows: Rows | TaskRows | Packs | Stream, processes: Processes
) -> Batches | StreamBatches:
    data, training = config.data, config.training
    if isinstance(rows, Stream):
        assert training.steps is not None
        ahead = 2 * data.workers + 1  # what loader processes prefetch
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
