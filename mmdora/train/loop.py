"""The training loop: forward, backward, clipping, the optimizer's step, and then logging, evaluating and saving.

It is a loop of our own on accelerate, and not `transformers.Trainer`, because training needs what the public hooks of
`Trainer` cannot do: leave out a step, shrink micro-batches when memory runs out, go on with processes that have no row
left, write checkpoints that are complete or absent, and continue logged means after a resume. With `Trainer` this took
overriding thirteen private methods and writing three private counters. accelerate provides processes, precision,
clipping and wrapping; transformers provides the schedules.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers.trainer_utils import speed_metrics

from mmdora.config import RunConfig
from mmdora.errors import MmdoraError
from mmdora.train.callbacks import Callbacks
from mmdora.train.checkpoint import check_adapter
from mmdora.train.early_stopping import LOSS, EarlyStopping, metric
from mmdora.train.evaluation import Evaluation
from mmdora.train.gates import restore
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
    """The objects that are told how a run goes on, and the one that may end it.

    Attributes:
        reports: receive what is logged; only the main process has any.
        stop: says whether a signal asks the run to end.
        say: receives messages for people; prints them in the main process only.
        callbacks: those of the user, which all processes have.
    """

    reports: Sequence[Report]
    stop: StopRequest
    say: Callable[[str], None]
    callbacks: Callbacks


class Loop:
    """Runs the remaining steps of a run. After each step it logs, evaluates and saves if that is due.

    Args:
        trained: model, optimizer and schedule.
        feed: gives the micro-batches.
        objective: computes the loss.
        evaluation: evaluates held-out records; None if there are none.
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
        """Train until the last step, until a signal comes, or until results no longer get better.

        Args:
            checkpoint: the checkpoint to go on from; `prepare` has already loaded its adapter.

        Raises:
            MmdoraError: if a loss or gradient is not finite, a row cannot be read, or the disk is full.
        """
        if checkpoint is not None:
            self.checkpoints.restore(checkpoint, self.progress, self.losses)
        begun, first = time.time(), self.progress.global_step
        for report in self.observers.reports:
            report.begin(self.progress)
        self.observers.callbacks.begin(self.progress)
        self.steps.begin()
        self.steps.times.mark("data")
        # If the checkpoint was written after the last step of the run, there is nothing left to do.
        if not (first >= self.progress.max_steps or self._exhausted()):
            for batches in self.feed.steps(first, lambda: self._restore_random_numbers(checkpoint)):
                self.observers.callbacks.step_begins(self.progress)
                norm, rate = self.steps.take(batches)
                if self._after_step(norm, rate):
                    break
                self.steps.times.mark("data")
        self._summarise(begun, self.progress.global_step - first)
        if self.best is not None:
            self._take_best(self.best)
        self.observers.callbacks.end(self.progress)
        return self.progress

    def _take_best(self, best: Path) -> None:
        """Load the adapter of the best checkpoint, which becomes the result.

        Raises:
            MmdoraError: if it is damaged or gone; no other checkpoint takes its place.
        """
        with self.processes.together():
            try:
                check_adapter(best)
            except MmdoraError as error:
                last = self.config.training.output / f"checkpoint-{self.progress.global_step}"
                raise MmdoraError(
                    f"the best checkpoint cannot become the result: {error}. Put it back from a copy and go on with "
                    f"--resume; or add --allow-changes to take the best of the later ones, or else {last}, the last"
                ) from None
            if not self.processes.sharded:
                restore(self.trained.model, best)

    @property
    def best(self) -> Path | None:
        """The checkpoint whose adapter is the result of the run; None if the adapter of the last step is."""
        best = self.progress.best_model_checkpoint
        if best is None or self.evaluation is None or not self.config.training.save_every:
            return None
        return Path(best)

    # --- what is due after a step

    def _after_step(self, norm: Any, rate: float) -> bool:
        """Log, evaluate and save if that is due; returns whether the run ends here."""
        training, step = self.config.training, self.progress.global_step
        last, asked = step >= self.progress.max_steps, self.observers.stop.asked()
        exhausted = False
        for report in self.observers.reports:
            report.step(self.progress)
        wishes = self.observers.callbacks.step_ended(self.progress)
        if (step == 1 or step % training.log_every == 0 or wishes.log) and step > self.losses.since:
            self._log_step(norm, rate)
        due = training.eval_every and (step % training.eval_every == 0 or last)
        if (self.evaluation is not None and due) or wishes.evaluate:
            exhausted = self.evaluate()
        due = training.save_every and (step % training.save_every == 0 or last)
        if due or (asked and not last) or wishes.save:
            self.save()
        return last or asked or exhausted or self.observers.callbacks.stop()

    def _log_step(self, norm: Any, rate: float) -> None:
        logs: dict[str, Any] = {"loss": self.losses.logged(self.progress.global_step)}
        if norm is not None:
            logs["grad_norm"] = float(norm)
        self.steps.count_flops()
        self.log(logs | {"learning_rate": rate} | self.steps.times.per_step())

    def evaluate(self) -> bool:
        """Evaluate and note the best result; returns whether `training.early_stopping` ends the run.

        Raises:
            MmdoraError: a callback asked for it, and there are no held-out records.
        """
        if self.evaluation is None:
            raise MmdoraError("a callback asked for an evaluation, and there are no held-out records; give data.eval")
        metrics = self.evaluation.run(self.trained.model, self.objective, self.log)
        # Callbacks are told before the best result is noted, as by `Trainer`: they compare with the one before.
        self.observers.callbacks.evaluated(self.progress, metrics)
        self._note_best(metrics)
        return self._exhausted()

    def _exhausted(self) -> bool:
        patience = self.config.training.early_stopping
        if patience is None:
            return False
        return EarlyStopping(patience, metric(self.config)).exhausted(self.progress.results())

    def _note_best(self, metrics: dict[str, float]) -> None:
        """Note the result if it is the best so far.

        Only results at regular checkpoints count. A signal causes a checkpoint too, and whether a run was interrupted
        must not change the resulting adapter.
        """
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
        self.observers.callbacks.saved(self.progress)

    def log(self, logs: dict[str, Any]) -> None:
        """Write values to the history, which checkpoints keep, and to all reports."""
        logs["epoch"] = self.progress.epoch
        self.progress.log_history.append({**logs, "step": self.progress.global_step})
        for report in self.observers.reports:
            report.log(self.progress, logs)
        self.observers.callbacks.log(self.progress, logs)

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
    """The number of optimizer steps of the whole run."""
    return config.training.steps or math.ceil(config.training.epochs * feed.steps_per_epoch)
