"""Handles a lack of memory: smaller micro-batches for the same rows per step, or one line that says what to change."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size
from torch import Tensor

from mmdora.adapt.inject import make_plan
from mmdora.config import RunConfig, Training
from mmdora.errors import OutOfMemory
from mmdora.families import family_of
from mmdora.models.base import skeleton_of
from mmdora.train.loader import Feed
from mmdora.train.memory import estimate, typical_batch
from mmdora.train.processes import Processes


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error means that a GPU or the host is out of memory, or was raised by `Fitting` for that reason."""
    known = isinstance(error, (torch.OutOfMemoryError, MemoryError, OutOfMemory))
    return known or (isinstance(error, Exception) and should_reduce_batch_size(error))


def estimated(
    config: RunConfig, processor: Any, batch: Mapping[str, Tensor] | None, *, trust_remote_code: bool = False
) -> str:
    """A phrase with the memory that `mmdora inspect` estimates for `batch`, or for a typical batch if it is None."""
    try:
        model = skeleton_of(config, trust_remote_code=trust_remote_code)
        on_cpu = (
            {name: value.cpu() for name, value in batch.items()}
            if batch
            else typical_batch(family_of(processor), config)
        )
        return f"estimated: {estimate(model, make_plan(model, config.adapt), config, on_cpu)}"
    except Exception as error:  # Memory may run out here too, but the line about the run has to be printed anyway.
        return f"not estimated: {type(error).__name__}"


def out_of_memory(step: int, rows: int, training: Training, estimated: str) -> OutOfMemory:
    """Make the error that ends a run for lack of memory; it gives the estimate, and three settings to change."""
    halved = f"training.batch_size {rows // 2} with training.accumulation {training.accumulation * 2}"
    changes = [
        "shorter rows (data.max_length, data.image_tokens)" if rows == 1 else f"{halved}, or find_batch_size: true",
        "training.gradient_checkpointing: true" if not training.gradient_checkpointing else "a lower adapt.*.rank",
        "model.dtype: bf16 with training.precision: bf16" if training.precision == "fp32" else "fewer adapted modules",
    ]
    return OutOfMemory(
        f"out of memory in step {step}, with {rows} rows in a micro-batch ({estimated}); try {'; '.join(changes)}"
    )


class Fitting:
    """Runs a step; if memory runs out, repeats it with micro-batches of half the rows (`training.find_batch_size`).

    The loader, the order of the rows, the rows of a step and the number of steps do not change: a micro-batch is only
    run in smaller pieces. The loss is summed over the labels of the whole step, so the gradient is the same. The
    processes agree on the size of the pieces at the end of a step, before gradients are reduced. Until then each
    process accumulates its own gradients (`no_sync`). DDP reduces gradients only in a backward pass, so one more pass,
    over a masked row, makes it reduce them.

    Args:
        feed: gives the micro-batches, and can read one again in pieces of another size.
        wrapped: the model as accelerate prepared it.
        say: receives a line each time the size is halved.
    """

    def __init__(self, feed: Feed, wrapped: Any, processes: Processes, training: Training, say: Callable[[str], None]):
        assert feed.pieces is not None
        self.feed, self.pieces, self.wrapped, self.processes, self.say = feed, feed.pieces, wrapped, processes, say
        self.rows_per_step = training.batch_size * training.accumulation * processes.count

    def run(
        self,
        batches: Sequence[dict[str, Any]],
        done: int,
        one_pass: Callable[[Any, int], None],
        undo: Callable[[], None],
    ) -> None:
        """Run the micro-batches of the step after `done`, and repeat with smaller pieces until they fit.

        Args:
            one_pass: runs forward and backward of a piece; its second argument is the number of pieces in this process.
            undo: drops the gradients and losses that this step has accumulated.

        Raises:
            OutOfMemory: if one row does not fit.
        """
        while self.processes.any(self._too_large(batches, done, one_pass)):
            clear_device_cache(garbage_collection=True)
            self._halve(done + 1)
            undo()
        if self.processes.count > 1:
            one_pass(self.feed.masked(), 1)

    def _too_large(self, batches: Sequence[dict[str, Any]], done: int, one_pass: Callable[[Any, int], None]) -> bool:
        try:
            with self.processes.accelerator.no_sync(self.wrapped):
                for number, batch in enumerate(batches):
                    if batch["limit"] != self.pieces.limit:  # The loader made it before the limit was lowered.
                        batch = self.feed.read(done, number)
                    for piece in batch["pieces"]:
                        one_pass(piece, len(batches) * len(batch["pieces"]))
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            return True
        return False

    def _halve(self, step: int) -> None:
        before = self.pieces.limit
        if before == 1:
            raise OutOfMemory(f"out of memory in step {step}, with one row")
        self.pieces.limit = before // 2
        self.say(
            f"out of memory in step {step}: micro-batches of {before // 2} rows instead of {before} from here on, "
            f"{self.rows_per_step} rows a step as before"
        )
