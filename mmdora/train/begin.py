"""The first stage of a run: it checks whether the run that was asked for can begin or go on."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmdora.config import RunConfig
from mmdora.errors import MmdoraError
from mmdora.models.base import format_of_files
from mmdora.outputs.lock import locked
from mmdora.train.check import check_output, check_plan
from mmdora.train.loading import Say
from mmdora.train.processes import Processes
from mmdora.train.ranks import check_ranks
from mmdora.train.resume import check_changes, find_checkpoint
from mmdora.train.spread import PACKED, check_sharded


@dataclass(frozen=True)
class Request:
    """The arguments of `mmdora.train.train`, which explains them."""

    config: RunConfig
    resume: bool | Path
    allow_changes: bool
    trust: bool
    say: Say


@dataclass(frozen=True)
class Begun:
    """The start of a run, as far as it is known before any record is read.

    Attributes:
        checkpoint: checkpoint to go on from; None for a fresh run.
        before: config of the run that is resumed, and the facts in the checkpoint's manifest; None for a fresh run.
    """

    checkpoint: Path | None
    before: dict[str, Any] | None

    def check(self, request: Request, facts: Mapping[str, Any]) -> None:
        """Raise an MmdoraError if `facts` show that the run to resume was a different one; see `check_changes`."""
        if self.before is not None:
            check_changes(request.config, self.before, facts, request.allow_changes, request.say)


def hold(output: Path, held: ExitStack) -> None:
    """Keep other runs out of the run folder until `held` is closed. Only the main process does this."""
    check_output(output)
    held.enter_context(locked(output))


def begin(request: Request, processes: Processes) -> Begun:
    """Check config and run folder, and find the checkpoint to resume from. Only the main process does this."""
    config = request.config
    begun = Begun(*find_checkpoint(config.training.output, request.resume, request.say))
    begun.check(request, {"processes": processes.count, "data": {}})
    if not config.data.sources:
        raise MmdoraError("data.train: give the file of records to train on")
    if processes.sharded:
        check_sharded(config)
    check_ranks(config, sharded=processes.sharded)
    if config.adapt.gates is not None and processes.sharded:
        raise MmdoraError("adapt.gates cannot be used with FSDP or DeepSpeed, which would shard them; use DDP")
    if config.model.compose is not None:
        from mmdora.models.llava.compose import compose_into  # Only a composed base needs this.

        compose_into(Path(config.base), config.model.compose, config.training.seed, request.say)
    if processes.sharded and not config.model.dequantize and format_of_files(config.base):
        raise MmdoraError(PACKED)
    device = None if processes.sharded else processes.device
    check_plan(config, device, trust_remote_code=request.trust)
    return begun


def silent(line: str) -> None:
    """Print nothing; the `say` of all processes but the main one."""
