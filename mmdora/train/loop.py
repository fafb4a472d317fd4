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
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers.trainer_utils import speed_metrics

from mmdora.adapter_files.adapters import restore_adapter
from mmdora.config import RunConfig
from mmdora.errors import MmdoraError
from mmdora.train.batch_size import Fitting
from mmdora.train.early_stopping import LOSS, EarlyStopping, metric
from mmdora.train.evaluation import Evaluation
from mmdora.train.guards import NOT_AGAIN, StopRequest, where_not_finite
from mmdora.train.loader import Feed
from mmdora.train.log import Report
from mmdora.train.objective import Objective
from mmdora.train.optimizer import Trained
from mmdora.train.processes import Processes
from mmdora.train.progress import Losses, Progress
from mmdora.train.saving import Checkpoints
from mmdora.train.times import StepTimes


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
        evaluation: of held-out records; None where there are none.
    """

    def __init__(
        self,
        config: RunConfig,
        processes: Processes,
        trained: Trained,
        feed: Feed,
        evaluation: Evaluation | None,
        checkpoints: Checkpoints,
        observers: Observers,
    ):
        self.config, self.processes, self.trained, self.feed = config, processes, trained, feed
        self.evaluation, self.checkpoints, self.observers = evaluation, checkpoints, observers
        training = config.training
        self.objective = Objective(
            trained.model,
            processes,
            chunked=training.chunked_loss,
            probe=feed.shortest if config.data.stream is False else None,
            say=observers.say,
        )
        self.fitting = Fitting(feed, trained.wrapped, processes, training, observers.say) if feed.pieces else None
        self.progress, self.losses = Progress(max_steps=steps_of(config, feed)), Losses(processes, 0)
        self.times = StepTimes(processes.device)
        self.in_hand: list[dict[str, Any]] = []  # the batches of a step, until its gradients are known to be finite
        self._flops_per_token = 6 * trained.model.num_parameters(exclude_embeddings=True)
        self._tokens = 0  # in this process, since they were last counted

    def run(self, checkpoint: Path | None = None) -> Progress:
        """Learn until the last step, a signal, or results that get no better.

        Args:
            checkpoint: where to go on from; `prepare` has loaded its adapter.

        Raises:
            MmdoraError: at a step that is not finite, a row that cannot be read, a full disk.
        """
        if checkpoint is not None:
            self.progress = self.checkpoints.restore(checkpoint, self.losses)
            self.progress.max_steps = steps_of(self.config, self.feed)
        begun, first = time.time(), self.progress.global_step
        for report in self.observers.reports:
            report.begin(self.progress)
        self.trained.wrapped.train()
        self.trained.optimizer.zero_grad()
        self.times.mark("data")
        if not (first >= self.progress.max_steps or self._exhausted()):  # else it was stopped behind its last step
            for batches in self.feed.steps(first, lambda: self._restore_random_numbers(checkpoint)):
                norm, rate = self.step(batches)
                if self._after_step(norm, rate):
                    break
                self.times.mark("data")
        self._summarise(begun, self.progress.global_step - first)
        if self.best is not None and not self.processes.sharded:
            restore_adapter(self.trained.model, self.best)
        return self.progress

    @property
    def best(self) -> Path | None:
        """The checkpoint whose adapter is the result; None: that of the last step is."""
        best = self.progress.best_model_checkpoint
        chosen = best is not None and self.config.training.save_every and self.evaluation is not None
        return Path(best) if chosen else None

    # --- a step

    def step(self, batches: list[dict[str, Any]]) -> tuple[Tensor | None, float]:
        """One update from the micro-batches of a step.

        Returns:
            The norm of the gradient before it was clipped, or None where the step was left out; and the learning rate
            of the first group of parameters.
        """
        self.times.mark(None)
        self.losses.begin_step()
        items = self.objective.items(_in_pieces(batches))
        if self.fitting is None:
            self._accumulate(batches, items)
        else:
            self.fitting.run(
                batches,
                self.progress.global_step,
                lambda piece, number: self.one_pass(piece, items, number),
                self._undo,
            )
        inputs = [batch.get(self.trained.model.main_input_name) for batch in _in_pieces(batches)]
        self._tokens += sum(tokens.numel() for tokens in inputs if tokens is not None)
        norm = self._finite(self.gradient_norm())
        self.trained.optimizer.step()
        rate = self.trained.schedule.get_last_lr()[0]
        self.trained.schedule.step()
        self.trained.optimizer.zero_grad()
        self.times.end_step()
        self.progress.global_step += 1
        epoch, step = divmod(self.progress.global_step - 1, self.feed.steps_per_epoch)
        rounds = min((step + 1) * self.config.training.accumulation, self.feed.batches.rounds)
        self.progress.epoch = epoch + rounds / self.feed.batches.rounds
        return norm, rate

    def _accumulate(self, batches: list[dict[str, Any]], items: Tensor | None) -> None:
        accelerator = self.processes.accelerator
        for batch in batches:
            accelerator.sync_gradients = last = batch is batches[-1]  # processes reduce their gradients once a step
            with nullcontext() if last or self.processes.deepspeed else accelerator.no_sync(self.trained.wrapped):
                self.one_pass(batch, items, len(batches))

    def one_pass(self, batch: dict[str, Any], items: Tensor | None, batches: int) -> None:
        """Forward and backward of a batch as the collator made it; see `Objective.train`."""
        self.in_hand.append(batch)
        self.times.samples += batch.pop("samples", 0)
        self.times.mark("forward")
        loss = self.objective.train(self.trained.wrapped, batch, items, batches)
        self.times.mark("backward")
        accelerator = self.processes.accelerator
        accelerator.backward(loss, **({"scale_wrt_gas": False} if self.processes.deepspeed else {}))
        self.losses.sum += loss.detach()
        self.times.mark("optimizer" if accelerator.sync_gradients else None)

    def _undo(self) -> None:
        self.trained.optimizer.zero_grad()
        self.in_hand.clear()
        self.losses.take_back()

    def gradient_norm(self) -> Any:
        """The norm of the gradient of all processes, which is clipped to `training.max_grad_norm`; 0 clips nothing."""
        largest = self.config.training.max_grad_norm or float("inf")
        return self.processes.accelerator.clip_grad_norm_(self.trained.wrapped.parameters(), largest)

    def _finite(self, norm: Any) -> Any:
        """`norm`; where it or a loss is not finite, None for a step that is left out.

        Raises:
            MmdoraError: if the run has to stop there, with the rows and the place where it began.
        """
        batches, self.in_hand = self.in_hand, []
        # one look at the device for both; after the reduction the norm is the same everywhere, the loss is not
        if not self.processes.any(not bool(torch.isfinite(self.losses.sum + norm))):
            return norm
        training, step, done = self.config.training, self.progress.global_step + 1, self.losses.skipped
        losses = self.processes.gathered(float(self.losses.sum))
        found = f"gradient norm {float(norm):g}, loss {' and '.join(f'{loss:g}' for loss in losses)}"
        rows = f"rows {', '.join(self.feed.ids(self.progress.global_step))}"
        if training.on_nonfinite == "skip" and done < training.max_skipped:
            self.losses.leave_out()
            self.trained.optimizer.zero_grad()  # without gradients the optimizer does nothing
            self.observers.say(f"step {step} left out ({done + 1} of at most {training.max_skipped}): {found}; {rows}")
            return None
        places = self.processes.gathered(where_not_finite(self.trained.model, self.objective.again, batches))
        place = next((place for place in places if place != NOT_AGAIN), NOT_AGAIN)
        left_out = f" ({done} steps were left out before)" if done else ""
        skip = ", or set training.on_nonfinite: skip" if training.on_nonfinite == "stop" else ""
        error = MmdoraError(
            f"step {step}: {found}; {place}; {rows}; the update was not made and nothing of it was saved{left_out}. "
            f"Look at these rows or lower training.lr{skip}"
        )
        error.told = not self.processes.main
        raise error

    # --- what is due after it

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
        self._count_flops()
        self.log(logs | {"learning_rate": rate} | self.times.per_step())

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
        self._count_flops()
        self.checkpoints.save(self.progress, self.losses)

    def log(self, logs: dict[str, Any]) -> None:
        """Into the history, which checkpoints keep, and to all reports."""
        logs["epoch"] = self.progress.epoch
        self.progress.log_history.append({**logs, "step": self.progress.global_step})
        for report in self.observers.reports:
            report.log(self.progress, logs)

    def _summarise(self, begun: float, steps: int) -> None:
        self._count_flops()
        self.log({
            **speed_metrics("train", begun, num_samples=steps * self.feed.rows_per_step, num_steps=steps),
            "total_flos": self.progress.total_flos,
            "train_loss": self.losses.of_run(self.progress.global_step),
        })  # fmt: skip

    def _count_flops(self) -> None:
        tokens, self._tokens = sum(self.processes.gathered(self._tokens)), 0
        self.progress.total_flos += self._flops_per_token * tokens

    def _restore_random_numbers(self, checkpoint: Path | None) -> None:
        if checkpoint is not None:
            self.checkpoints.restore_random_numbers(checkpoint, self.progress.global_step, self.observers.say)


def steps_of(config: RunConfig, feed: Feed) -> int:
    """Steps of the whole run."""
    return config.training.steps or math.ceil(config.training.epochs * feed.steps_per_epoch)


def _in_pieces(batches: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    return [piece for batch in batches for piece in batch.get("pieces", [batch])]
