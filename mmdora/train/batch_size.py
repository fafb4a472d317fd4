"""Out of memory: smaller micro-batches with as many rows per step, or one line that says what to change."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size
from torch import Tensor
from transformers import Trainer

from mmdora.adapt.inject import make_plan
from mmdora.batches.order import spare_row
from mmdora.config import RunConfig, Training
from mmdora.errors import OutOfMemory
from mmdora.families import family_of
from mmdora.models.load import skeleton
from mmdora.train.memory import estimate, typical_batch
from mmdora.train.processes import Processes


def is_out_of_memory(error: BaseException) -> bool:
    """Of a GPU (torch.OutOfMemoryError), of the host, or found by `FittingTrainer`."""
    known = isinstance(error, (torch.OutOfMemoryError, MemoryError, OutOfMemory))
    return known or (isinstance(error, Exception) and should_reduce_batch_size(error))


def estimated(
    config: RunConfig, processor: Any, batch: Mapping[str, Tensor] | None, *, trust_remote_code: bool = False
) -> str:
    """What `mmdora inspect` would say of the micro-batch in hand; of a typical one where there is none."""
    try:
        model = skeleton(config.base, trust_remote_code=trust_remote_code)
        on_cpu = (
            {name: value.cpu() for name, value in batch.items()}
            if batch
            else typical_batch(family_of(processor), config)
        )
        return f"estimated: {estimate(model, make_plan(model, config.adapt), config, on_cpu)}"
    except Exception as error:  # memory may be short here too, and the run's line has to come out
        return f"not estimated: {type(error).__name__}"


def out_of_memory(step: int, rows: int, training: Training, estimated: str) -> OutOfMemory:
    """What is said when it ends a run: the estimate, and three things to change."""
    halved = f"training.batch_size {rows // 2} with training.accumulation {training.accumulation * 2}"
    changes = [
        "shorter rows (data.max_length, data.image_tokens)" if rows == 1 else f"{halved}, or find_batch_size: true",
        "training.gradient_checkpointing: true" if not training.gradient_checkpointing else "a lower adapt.*.rank",
        "model.dtype: bf16 with training.precision: bf16" if training.precision == "fp32" else "fewer adapted modules",
    ]
    return OutOfMemory(
        f"out of memory in step {step}, with {rows} rows in a micro-batch ({estimated}); try {'; '.join(changes)}"
    )


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


class FittingTrainer(Trainer):
    """With `training.find_batch_size`, a step that does not fit is run again with micro-batches of half as many rows.

    The loader, the order of the rows, the rows of a step and the count of steps stay as they are: the rows that the
    loader hands out together are run in pieces. The loss is summed over the labels of the whole step, so that the
    gradient is the same. Processes agree at the end of a step, before anything is reduced: until then each
    accumulates for itself (`no_sync`), and what DDP reduces then comes with one more pass, of a masked row.
    """

    config: RunConfig
    rows: Any  # Rows or Packs; a Stream is not read again
    processes: Processes
    batches: Any  # Batches; with a Stream StreamBatches
    pieces: Pieces | None = None
    _tr_loss: Any
    _loss_before: Any
    _micro_batches: list[Any]
    _rounds = 0  # micro-batches of the loader in the step in hand
    _short = False  # whether memory ran out in it

    def one_pass(self, model: Any, batch: Any, items: Any) -> Tensor:
        """Forward and backward of a batch as the collator made it."""
        return super().training_step(model, batch, items)

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
        if not self._rounds:
            self._loss_before = self._tr_loss.clone()
        self._rounds += 1
        ends = self.accelerator.sync_gradients
        if self.pieces is None:
            loss = self.one_pass(model, inputs, num_items_in_batch)
        else:
            loss = self._in_pieces(model, inputs, num_items_in_batch)
            if ends:
                loss = self._agreed(model, loss, num_items_in_batch)
        if ends:
            self._rounds = 0
        return loss

    def _in_pieces(self, model: Any, inputs: Any, items: Any) -> Tensor:
        assert self.pieces is not None
        total = torch.zeros((), device=self.args.device)
        if self._short:
            return total
        if inputs is None or inputs["limit"] != self.pieces.limit:  # of a step that is run again, or loaded before
            inputs = None
        try:
            with self.accelerator.no_sync(model):
                for piece in (inputs or self._collated(self._rounds - 1))["pieces"]:
                    total += self.one_pass(model, piece, items)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            self._short = True
        return total

    def _agreed(self, model: Any, loss: Tensor, items: Any) -> Tensor:
        """The loss of the step's last micro-batch; of the whole step where it was run again."""
        assert self.pieces is not None
        rounds = self._rounds
        while self.processes.any(self._short):
            clear_device_cache(garbage_collection=True)
            self._halve()
            model.zero_grad()
            self._micro_batches.clear()
            self._tr_loss.copy_(self._loss_before)
            self._short, loss = False, torch.zeros_like(loss)
            for self._rounds in range(1, rounds + 1):
                loss += self._in_pieces(model, None, items)
        if self.processes.count > 1:
            spare = spare_row(self.rows.lengths, self.rows.has_image, with_image=True)
            loss += self.one_pass(model, self.data_collator([self.rows[~spare]]), items)  # pyright: ignore
        return loss

    def _halve(self) -> None:
        assert self.pieces is not None
        before, step = self.pieces.limit, self.state.global_step + 1
        if before == 1:
            raise OutOfMemory(f"out of memory in step {step}, with one row")
        self.pieces.limit = before // 2
        per_step = self.config.training.batch_size * self.config.training.accumulation * self.processes.count
        self.say(f"out of memory in step {step}: micro-batches of {before // 2} rows instead of {before} from here on, "
                 f"{per_step} rows a step as before")  # fmt: skip

    def _collated(self, number: int) -> dict[str, Any]:
        """Micro-batch `number` of the step in hand, read again."""
        assert self.pieces is not None
        step = self.state.global_step % -(-self.batches.rounds // self.args.gradient_accumulation_steps)
        indices = self.batches.of_round(step * self.args.gradient_accumulation_steps + number, self.processes.index)
        return self.pieces([self.rows[index] for index in indices])

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: Any) -> Any:
        if self.pieces is not None:
            batch_samples = [piece for batch in batch_samples for piece in batch.get("pieces", [batch])]
        return super()._get_num_items_in_batch(batch_samples, device)

    def floating_point_ops(self, inputs: Any) -> int:
        return sum(super(FittingTrainer, self).floating_point_ops(piece) for piece in inputs.get("pieces", [inputs]))

    def say(self, line: str) -> None:
        """A line for a person, from one process."""
        raise NotImplementedError
