"""Out of memory: smaller micro-batches with as many rows per step, or one line that says what to change."""

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
from mmdora.models.load import skeleton
from mmdora.train.loader import Feed
from mmdora.train.memory import estimate, typical_batch
from mmdora.train.processes import Processes


def is_out_of_memory(error: BaseException) -> bool:
    """Of a GPU (torch.OutOfMemoryError), of the host, or found by `Fitting`."""
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
    except Exception as error:  # memory may be short here too, and the line about the run must be said all the same
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


class Fitting:
    """With `training.find_batch_size`, a step that does not fit is run again with micro-batches of half as many rows.

    The loader, the order of the rows, the rows of a step and the count of steps stay as they are: the rows that the
    loader hands out together are run in pieces. The loss is summed over the labels of the whole step, so that the
    gradient is the same. Processes agree at the end of a step, before anything is reduced: until then each
    accumulates for itself (`no_sync`), and what DDP reduces then comes with one more pass, of a masked row.

    Args:
        feed: reads a micro-batch again, in pieces of another size.
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
        """Run the micro-batches of the step after `done`, as often as it takes.

        Args:
            one_pass: forward and backward of a piece; its second argument is the number of pieces in this process.
            undo: drops what the passes of a step have left: gradients and losses.

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
                    if batch["limit"] != self.pieces.limit:  # the loader collated it before the limit was lowered
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
