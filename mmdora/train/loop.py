"""The training loop: forward, backward, clip, step, and what is due after a step.

A loop of our own on accelerate, and not `transformers.Trainer`, because what adapters of several modalities need lies
between the lines of its loop: a step that must not be taken, micro-batches that shrink when memory runs out, rows that
a process may lack, a checkpoint that is whole or not there, logged means that go on after a resume. Its public hooks
reach none of these; it took overriding thirteen private methods and writing three private counters. Processes,
precision, clipping and wrapping are accelerate's, the schedules are transformers'.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers.trainer_utils import speed_metrics

from mmdora.adapter_files.adapters import restore_adapter
from mmdora.config import RunConfig
from mmdora.train.early_stopping import LOSS, EarlyStopping, metric
from mmdora.train.evaluation import Evaluation
from mmdora.train.guards import StopRequest
from mmdora.train.loader import Feed
from mmdora.train.log import Report
from mmdora.train.objective import Objective
from mmdora.train.optimizer import Trained
from mmdora.train.processes import Processes
from mmdora.train.progress import Losses, Progress
from mmdora.train.saving import Checkpoints
from mmdora.train.steps import Steps


@dataclass(frozen=True)
class Observers:
    """Who is told of a run, and who may end it.

    Attributes:
        reports: told what is logged; in the main process only.
        stop: whether a signal asks the run to end.
        say: receives lines for a person; silent but in the main process.
    """

    reports: Sequence[Report]
    stop: StopRequest
    say: Callable[[str], None]


class Loop:
    """All steps of a run that are left, each followed by what is due: a log, an evaluation, a checkpoint.

    Args:
        trained: model, optimizer and schedule.
        feed: the micro-batches.
        objective: the loss.
        evaluation: of held-out records; None where there are none.
    """

    def __init__(
        self,
        config: RunConfig,
        processes: Processes,
        trained: Trained,
        feed: Feed,
        objective: Objective,
        evaluation: Evaluation | None,
        checkpoints: Checkpoints,
        observers: Observers,
    ):
        self.config, self.processes, self.trained, self.feed = config, processes, trained, feed
        self.evaluation, self.checkpoints, self.observers = evaluation, checkpoints, observers
        self.progress, self.losses = Progress(max_steps=steps_of(config, feed)), Losses(processes)
        self.objective = objective
        self.steps = Steps(
            config.training, processes, trained, feed, objective, self.progress, self.losses, observers.say
        )

    def run(self, checkpoint: Path | None = None) -> Progress:
        """Learn until the last step, a signal, or results that get no better.

        Args:
            checkpoint: where to go on from; `prepare` has loaded its adapter.

        Raises:
            MmdoraError: at a step that is not finite, a row that cannot be read, a full disk.
        """
        if checkpoint is not None:
            self.checkpoints.restore(checkpoint, self.progress, self.losses)
        begun, first = time.time(), self.progress.global_step
        for report in self.observers.reports:
            report.begin(self.progress)
        self.steps.begin()
        self.steps.times.mark("data")
        if not (first >= self.progress.max_steps or self._exhausted()):  # else it was stopped behind its last step
            for batches in self.feed.steps(first, lambda: self._restore_random_numbers(checkpoint)):
                norm, rate = self.steps.take(batches)
                if self._after_step(norm, rate):
                    break
                self.steps.times.mark("data")
        self._summarise(begun, self.progress.global_step - first)
        if self.best is not None and not self.processes.sharded:
            restore_adapter(self.trained.model, self.best)
        return self.progress

    @property
    def best(self) -> Path | None:
        """The checkpoint whose adapter is the result; None: that of the last step is."""
        best = self.progress.best_model_checkpoint
        if best is None or self.evaluation is None or not self.config.training.save_every:
            return None
        return Path(best)

    # --- what is due after a step

    def _after_step(self, norm: Any, rate: float) -> bool:
        """Log, evaluate and save; returns whether the run ends here."""
        training, step = self.config.training, self.progress.global_step
        last, asked = step >= self.progress.max_steps, self.observers.stop.asked()
        exhausted = False
        for report in self.observers.reports:
            report.step(self.progress)
        if (step == 1 or step % training.log_every == 0) and step > self.losses.since:
            self._log_step(norm, rate)
        if self.evaluation is not None and training.eval_every and (step % training.eval_every == 0 or last):
            exhausted = self.evaluate()
        if (training.save_every and (step % training.save_every == 0 or last)) or (asked and not last):
            self.save()
        return last or asked or exhausted

    def _log_step(self, norm: Any, rate: float) -> None:
        logs: dict[str, Any] = {"loss": self.losses.logged(self.progress.global_step)}
        if norm is not None:
            logs["grad_norm"] = float(norm)
        self.steps.count_flops()
        self.log(logs | {"learning_rate": rate} | self.steps.times.per_step())

    def evaluate(self) -> bool:
        """Measure, keep in mind what is best; returns whether `training.early_stopping` ends the run."""
        assert self.evaluation is not None
        metrics = self.evaluation.run(self.trained.model, self.objective, self.log)
        self._note_best(metrics)
        return self._exhausted()

    def _exhausted(self) -> bool:
        patience = self.config.training.early_stopping
        if patience is None:
            return False
        return EarlyStopping(patience, metric(self.config)).exhausted(self.progress.log_history)

    def _note_best(self, metrics: dict[str, float]) -> None:
        """The best is one of the regular checkpoints: whether a signal came must not show in the adapter."""
        training, progress, key = self.config.training, self.progress, metric(self.config)
        step, value, best = progress.global_step, metrics[key], progress.best_metric
        if training.save_every and step % training.save_every and step < progress.max_steps:
            return
        sign = -1 if key == LOSS else 1
        if sign * value > (float("-inf") if best is None else sign * best):
            progress.best_metric = value
            progress.best_global_step = step if training.save_every else None

    def save(self) -> None:
        """Write a checkpoint."""
        self.steps.count_flops()
        self.checkpoints.save(self.progress, self.losses)

    def log(self, logs: dict[str, Any]) -> None:
        """Into the history, which checkpoints keep, and to all reports."""
        logs["epoch"] = self.progress.epoch
        self.progress.log_history.append({**logs, "step": self.progress.global_step})
        for report in self.observers.reports:
            report.log(self.progress, logs)

    def _summarise(self, begun: float, steps: int) -> None:
        self.steps.count_flops()
        self.log({
            **speed_metrics("train", begun, num_samples=steps * self.feed.rows_per_step, num_steps=steps),
            "total_flos": self.progress.total_flos,
            "train_loss": self.losses.of_run(self.progress.global_step),
        })  # fmt: skip

    def _restore_random_numbers(self, checkpoint: Path | None) -> None:
        if checkpoint is not None:
            self.checkpoints.restore_random_numbers(checkpoint, self.progress.global_step, self.observers.say)


def steps_of(config: RunConfig, feed: Feed) -> int:
    """Steps of the whole run."""
    return config.training.steps or math.ceil(config.training.epochs * feed.steps_per_epoch)
