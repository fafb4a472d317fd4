"""The state of a run: its step, its log, its best result so far, and the losses that are not logged yet."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmdora.train.checkpoint import STATE, best_of, best_problem
from mmdora.train.processes import Processes

OURS = "results_after"
"""The one field of `Progress` that is not in `trainer_state.json`."""


@dataclass
class Progress:
    """The content of a checkpoint's `trainer_state.json`.

    The file and its names are those of transformers' `TrainerState`, so that older checkpoints can be read, and tools
    that know that file can read ours.

    Attributes:
        global_step: optimizer steps so far, including steps that were left out.
        max_steps: optimizer steps of the whole run.
        epoch: passes over the data so far, with a fraction.
        total_flos: floating-point operations so far, by the rule 6 x parameters x tokens.
        log_history: logged entries, each with its `step`.
        best_metric: best result among those that count for the choice of the checkpoint.
        best_global_step: step of the checkpoint with the best result; None if no checkpoints are written.
        best_model_checkpoint: folder of that checkpoint, once it is written.
        results_after: the results of evaluations count from the step after this one on. It is 0, unless a resume has
            changed what is measured. The manifest has it, because `TrainerState` does not know it.
    """

    global_step: int = 0
    max_steps: int = 0
    epoch: float = 0.0
    total_flos: float = 0.0
    log_history: list[dict[str, Any]] = field(default_factory=list)
    best_metric: float | None = None
    best_global_step: int | None = None
    best_model_checkpoint: str | None = None
    results_after: int = 0

    def restore(self, checkpoint: Path) -> None:
        """Take over the state in a checkpoint, except for `max_steps`, which may have been changed."""
        stored = json.loads((checkpoint / STATE).read_text(encoding="utf-8"))
        for known in fields(self):
            if known.name not in ("max_steps", OURS):
                setattr(self, known.name, stored[known.name])
        best = best_of(checkpoint)  # The stored path is not used, because the run folder may have been moved.
        self.best_model_checkpoint = str(best) if best else None
        if best is not None and best_problem(checkpoint):
            # The user allowed this resume although the best checkpoint is gone. A later checkpoint then becomes the
            # best, even if its result is worse.
            self.best_metric = self.best_global_step = self.best_model_checkpoint = None

    def begin_results_anew(self) -> None:
        """Forget the best result so far, because later ones are measured in another way."""
        self.results_after = self.global_step
        self.best_metric = self.best_global_step = self.best_model_checkpoint = None

    def results(self) -> list[dict[str, Any]]:
        """The logged entries whose results count."""
        return [entry for entry in self.log_history if entry["step"] > self.results_after]

    def save(self, folder: Path) -> None:
        state = {name: value for name, value in asdict(self).items() if name != OURS}
        (folder / STATE).write_text(json.dumps(state, indent=2, sort_keys=True) + "\n", encoding="utf-8")


class Losses:
    """Sums of the loss since the last log and over the run.

    Attributes:
        sum: scalar on the device with this process's part of the sum since the last log. It is read only at a log, so
            that the host does not have to wait for the device.
        since: step of the last log, plus one for each step that was left out after it.
        total: sum of the losses of all steps up to the last log.
        skipped: number of steps that were left out.
    """

    def __init__(self, processes: Processes):
        self.processes = processes
        self.sum = torch.zeros((), device=processes.device)
        self.since, self.total, self.skipped = 0, 0.0, 0
        self._before = self.sum.clone()

    def begin_step(self) -> None:
        self._before = self.sum.clone()

    def take_back(self) -> None:
        """Undo all additions to the sum since the step began."""
        self.sum.copy_(self._before)

    def leave_out(self) -> None:
        """Leave the current step out of the means, which are over the steps that were taken."""
        self.take_back()
        self.skipped += 1
        self.since += 1

    def mean(self) -> Tensor:
        """The mean of `sum` over the processes, all of which have to call this."""
        return self.processes.accelerator.reduce(self.sum, "mean")  # pyright: ignore[reportReturnType]

    def logged(self, step: int) -> float:
        """The mean loss of the steps since the last log; the sum then starts anew at `step`."""
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
        """The values that a checkpoint's manifest keeps, and that `restore` takes."""
        logging = {"loss": float(self.mean()), "since": self.since, "total": self.total}
        return {"skipped": self.skipped, "logging": logging}

    def restore(self, manifest: Mapping[str, Any]) -> None:
        logging, self.skipped = manifest["logging"], manifest["skipped"]
        self.sum.fill_(logging["loss"])
        self.since, self.total = logging["since"], logging["total"]
