"""Where a run stands: its step, its log, its best result so far, and the losses that are not logged yet."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmdora.train.checkpoint import STATE, best_of
from mmdora.train.processes import Processes


@dataclass
class Progress:
    """What `trainer_state.json` of a checkpoint holds.

    File and names are those of transformers' `TrainerState`, so that older checkpoints are read and tools that know
    that file read ours.

    Attributes:
        global_step: optimizer steps taken, those that were left out included.
        max_steps: optimizer steps of the whole run.
        epoch: passes over the data, as a fraction.
        total_flos: floating point operations by the rule 6 x parameters x tokens.
        log_history: what was logged, entry by entry, each with its `step`.
        best_metric: the best result among those that count for the choice of the checkpoint.
        best_global_step: the step of the checkpoint that has it; None where no checkpoints are written.
        best_model_checkpoint: that checkpoint's folder, once it is written.
    """

    global_step: int = 0
    max_steps: int = 0
    epoch: float = 0.0
    total_flos: float = 0.0
    log_history: list[dict[str, Any]] = field(default_factory=list)
    best_metric: float | None = None
    best_global_step: int | None = None
    best_model_checkpoint: str | None = None

    def restore(self, checkpoint: Path) -> None:
        """Go on from a checkpoint, as far as this run goes (`max_steps`)."""
        stored = json.loads((checkpoint / STATE).read_text(encoding="utf-8"))
        for known in fields(self):
            if known.name != "max_steps":
                setattr(self, known.name, stored[known.name])
        best = best_of(checkpoint)  # the run folder may have been moved, or the checkpoint deleted
        self.best_model_checkpoint = str(best) if best else None

    def save(self, folder: Path) -> None:
        (folder / STATE).write_text(json.dumps(asdict(self), indent=2, sort_keys=True) + "\n", encoding="utf-8")


class Losses:
    """The loss summed since the last log, and over the run.

    Attributes:
        sum: scalar on the device, this process's part; not read before a log, so that the device need not wait.
        since: the step of the last log, moved on by one for each step that was left out after it.
        total: what was logged so far.
        skipped: steps that were left out.
    """

    def __init__(self, processes: Processes):
        self.processes = processes
        self.sum = torch.zeros((), device=processes.device)
        self.since, self.total, self.skipped = 0, 0.0, 0
        self._before = self.sum.clone()

    def begin_step(self) -> None:
        self._before = self.sum.clone()

    def take_back(self) -> None:
        """Forget what was summed since the step began."""
        self.sum.copy_(self._before)

    def leave_out(self) -> None:
        """The step in hand does not count: a logged mean is over the steps that were taken."""
        self.take_back()
        self.skipped += 1
        self.since += 1

    def mean(self) -> Tensor:
        """`sum` as the mean over the processes. All of them call it."""
        return self.processes.accelerator.reduce(self.sum, "mean")  # pyright: ignore[reportReturnType]

    def logged(self, step: int) -> float:
        """The mean loss of a step since the last log; counts anew from `step`."""
        summed = float(self.mean())
        self.sum.zero_()
        self.total += summed
        mean = summed / (step - self.since)
        self.since = step
        return mean

    def of_run(self, step: int) -> float:
        """The mean loss of all steps that were taken."""
        return (self.total + float(self.mean())) / max(step - self.skipped, 1)

    def facts(self) -> dict[str, Any]:
        """What a checkpoint's manifest keeps; `restore` takes it."""
        logging = {"loss": float(self.mean()), "since": self.since, "total": self.total}
        return {"skipped": self.skipped, "logging": logging}

    def restore(self, manifest: Mapping[str, Any]) -> None:
        logging, self.skipped = manifest["logging"], manifest["skipped"]
        self.sum.fill_(logging["loss"])
        self.since, self.total = logging["since"], logging["total"]
