"""The processes of one run, which torchrun or accelerate launched (or a single one), and how they agree."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from importlib.util import find_spec
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import (
    DataLoaderConfiguration,
    DistributedDataParallelKwargs,
    DistributedType,
    GradientAccumulationPlugin,
    InitProcessGroupKwargs,
)

from mmdora.config import Training
from mmdora.errors import MmdoraError
from mmdora.train import fsdp

T = TypeVar("T")
PATIENCE = timedelta(minutes=30)
"""How long a process waits for another: long, because the main process may be reading a large data set meanwhile."""


class Processes:
    """The processes of a run. Either all processes call a method or none does, because the calls wait for one another.

    `accelerator` is accelerate's object for this process. It is given the precision and a few fixed settings; all else
    (DDP, FSDP2, DeepSpeed) it reads from the environment that `accelerate launch` or torchrun has set. If this process
    was launched as one of several, it joins their process group here.

    Args:
        training: settings of the training.

    Raises:
        MmdoraError: if the run would silently do something else than what was asked for.
    """

    def __init__(self, training: Training):
        _check_start()
        # accelerate's state is global, and with the state of an earlier run it would refuse another precision.
        AcceleratorState._reset_state(reset_partial_state=True)
        self.accelerator = Accelerator(
            mixed_precision="bf16" if training.precision == "bf16" else "no",
            # Without `cpu`, processes that torchrun starts on a machine without a GPU would each train alone.
            cpu=not torch.accelerator.is_available(),
            # Losses are shares of their step already, so accelerate must not divide them by a launcher's setting.
            gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),
            dataloader_config=DataLoaderConfiguration(non_blocking=torch.cuda.is_available()),
            kwargs_handlers=[
                # The base is frozen, so no buffer changes and none has to be sent.
                DistributedDataParallelKwargs(broadcast_buffers=False),
                InitProcessGroupKwargs(timeout=PATIENCE),
            ],
        )
        self.device = self.accelerator.device
        self.count, self.index = self.accelerator.num_processes, self.accelerator.process_index
        fsdp.set_up(self.accelerator, training)
        if (deepspeed := self.accelerator.state.deepspeed_plugin) is not None:
            assert deepspeed.deepspeed_config is not None
            # accelerate would fill these in from a loader and an accumulation of its own, which it is not given.
            deepspeed.deepspeed_config |= {
                "train_micro_batch_size_per_gpu": training.batch_size,
                "gradient_accumulation_steps": training.accumulation,
                "gradient_clipping": training.max_grad_norm,
            }

    @property
    def fsdp(self) -> bool:
        return self.accelerator.distributed_type == DistributedType.FSDP

    @property
    def deepspeed(self) -> bool:
        return self.accelerator.distributed_type == DistributedType.DEEPSPEED

    @property
    def sharded(self) -> bool:
        """Whether each process holds only a part of the parameters."""
        return self.fsdp or self.deepspeed

    @property
    def main(self) -> bool:
        return self.index == 0

    def any(self, flag: bool) -> bool:
        """Whether `flag` is true in any process."""
        if self.count == 1:
            return flag
        anywhere = torch.tensor(int(flag), device=self.device)
        dist.all_reduce(anywhere, dist.ReduceOp.MAX)
        return bool(anywhere)

    def gathered(self, value: T) -> list[T]:
        """The values of all processes, in their order."""
        if self.count == 1:
            return [value]
        values: list[Any] = [None] * self.count
        dist.all_gather_object(values, value)
        return values

    @contextmanager
    def together(self) -> Iterator[None]:
        """Run a block such that an error in one process stops all of them, with its message.

        Nothing inside the block may wait for another process.

        Raises:
            MmdoraError: in all processes, with the message of the first process that failed. It is marked as `told`
                outside the main process, so that it is printed once.
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
            raise failed  # This is no mistake of the user, so it keeps its traceback.
        index, line = next((index, line) for index, line in enumerate(lines) if line is not None)
        error = MmdoraError(line if index == 0 else f"process {index}: {line}")
        error.told = not self.main
        raise error from failed

    def main_makes(self, make: Callable[[], T]) -> T:
        """Call `make` in the main process, and give its result in all processes."""
        made: list[Any] = [None]
        with self.together():
            if self.main:
                made[0] = make()
        if self.count > 1:
            dist.broadcast_object_list(made, src=0, device=self.device)
        return made[0]

    def main_first(self, make: Callable[[], T]) -> T:
        """Call `make` in each process, in the main one first, so that the others find its results in caches."""
        made: list[T] = []
        for turn in (True, False):
            with self.together():
                if self.main is turn:
                    made.append(make())
        return made[0]


def _check_start() -> None:
    gpus = torch.cuda.device_count()
    if gpus > 1 and int(os.environ.get("LOCAL_RANK", -1)) == -1:  # One GPU would work, and the others would be idle.
        raise MmdoraError(
            f"{gpus} GPUs are visible to one process: start one for each (torchrun --nproc-per-node "
            f"{gpus} -m mmdora train CONFIG, or accelerate launch), or choose: CUDA_VISIBLE_DEVICES=0"
        )
    if os.environ.get("ACCELERATE_USE_DEEPSPEED", "").lower() in ("1", "true"):
        if not torch.accelerator.is_available():
            raise MmdoraError(
                "DeepSpeed was asked for, but there is no GPU, and accelerate would run DDP on CPUs instead, without a "
                "word; leave it out (distributed_type: DEEPSPEED in its config), or use FSDP2, which runs on CPUs too"
            )
        if find_spec("deepspeed") is None:
            raise MmdoraError("DeepSpeed was asked for and is not installed; pip install deepspeed, or use FSDP2")


def _line(error: Exception) -> str:
    if isinstance(error, MmdoraError):
        return str(error)
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename or 'input/output'}: {error.strerror}"
    return f"{type(error).__name__}: {' '.join(str(error).split())}"
