"""What the processes of one run agree on: those that torchrun or accelerate launched, or the one there is."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from transformers import TrainingArguments

from mmdora.errors import MmdoraError

T = TypeVar("T")


class Processes:
    """The processes of a run. All of them call each method, or none: the methods wait for one another.

    Args:
        arguments: joins the process group, where the process was launched for one.
    """

    def __init__(self, arguments: TrainingArguments):
        self.device, self.count, self.index = arguments.device, arguments.world_size, arguments.process_index
        if arguments.n_gpu > 1:  # transformers would use nn.DataParallel, without a word
            raise MmdoraError(
                f"{arguments.n_gpu} GPUs are visible to one process: start one for each (torchrun --nproc-per-node "
                f"{arguments.n_gpu} -m mmdora train CONFIG, or accelerate launch), or choose: CUDA_VISIBLE_DEVICES=0"
            )
        if self.device.type == "cpu" and _asked("ACCELERATE_USE_FSDP"):
            raise MmdoraError(
                "FSDP was asked for, but there is no GPU, and accelerate runs DDP on CPUs instead, without a word; "
                "leave it out (--use_fsdp, or distributed_type: FSDP in its config), or start where there are GPUs"
            )

    @property
    def sharded(self) -> bool:
        """Whether parameters are spread over the processes, as accelerate was told: FSDP or DeepSpeed."""
        return _asked("ACCELERATE_USE_FSDP") or _asked("ACCELERATE_USE_DEEPSPEED")

    @property
    def main(self) -> bool:
        return self.index == 0

    def any(self, flag: bool) -> bool:
        """Whether it is so in any process."""
        if self.count == 1:
            return flag
        found = torch.tensor(int(flag), device=self.device)
        dist.all_reduce(found, dist.ReduceOp.MAX)
        return bool(found)

    def gathered(self, value: T) -> list[T]:
        """The values of all processes, in their order."""
        if self.count == 1:
            return [value]
        values: list[Any] = [None] * self.count
        dist.all_gather_object(values, value)
        return values

    @contextmanager
    def together(self) -> Iterator[None]:
        """A block that every process leaves, or none: what stops one stops all, with its line.

        Nothing inside may wait for another process.

        Raises:
            MmdoraError: in all processes, with the line of the first that failed; `told` but in the main one.
        """
        failed: Exception | None = None
        try:
            yield
        except Exception as error:
            if self.count == 1:
                raise
            failed = error
        if self.count == 1 or not self.any(failed is not None):
            return
        lines = self.gathered(None if failed is None else _line(failed))
        if failed is not None and not isinstance(failed, (MmdoraError, OSError)):
            raise failed  # not a mistake of the user: with its traceback, where it happened
        index, line = next((index, line) for index, line in enumerate(lines) if line is not None)
        error = MmdoraError(line if index == 0 else f"process {index}: {line}")
        error.told = not self.main
        raise error from failed

    def main_makes(self, make: Callable[[], T]) -> T:
        """What `make` gives in the main process, for all."""
        made: list[Any] = [None]
        with self.together():
            if self.main:
                made[0] = make()
        if self.count > 1:
            dist.broadcast_object_list(made, src=0, device=self.device)
        return made[0]


def _asked(variable: str) -> bool:
    return os.environ.get(variable, "").lower() in ("1", "true", "yes")


def _line(error: Exception) -> str:
    if isinstance(error, MmdoraError):
        return str(error)
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename or 'input/output'}: {error.strerror}"
    return f"{type(error).__name__}: {' '.join(str(error).split())}"
