"""One optimizer step: forward and backward of its micro-batches, clipping, a check that all is finite, the update."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from mmdora.config import Training
from mmdora.errors import MmdoraError
from mmdora.train.batch_size import Fitting
from mmdora.train.gates import shrink
from mmdora.train.guards import NOT_AGAIN, where_not_finite
from mmdora.train.loader import Feed
from mmdora.train.objective import Objective
from mmdora.train.optimizer import Trained
from mmdora.train.processes import Processes
from mmdora.train.progress import Losses, Progress
from mmdora.train.times import StepTimes


class Steps:
    """Takes the steps of a run and counts them.

    Args:
        trained: model, optimizer and schedule.
        feed: gives the micro-batches.
        objective: computes the loss.
        progress: counts steps and floating-point operations.
        losses: sums the losses.
        say: receives a line for each step that is left out, and each time that the micro-batches are halved.

    Attributes:
        times: measures the phases of a step.
        in_hand: batches of the current step, kept until its gradients are known to be finite.
    """

    def __init__(
        self,
        training: Training,
        processes: Processes,
        trained: Trained,
        feed: Feed,
        objective: Objective,
        progress: Progress,
        losses: Losses,
        say: Callable[[str], None],
    ):
        self.training, self.processes, self.trained, self.feed = training, processes, trained, feed
        self.objective, self.progress, self.losses, self.say = objective, progress, losses, say
        self.fitting = Fitting(feed, trained.wrapped, processes, training, say) if feed.pieces else None
        self.times = StepTimes(processes.device)
        self.in_hand: list[dict[str, Any]] = []
        self._flops_per_token = 6 * trained.model.num_parameters(exclude_embeddings=True)
        self._tokens = 0  # tokens in this process since `count_flops` was last called

    def begin(self) -> None:
        """Prepare model and optimizer for the first step."""
        # accelerate's state is global, and an earlier run may have ended in the middle of a step.
        self.processes.accelerator.sync_gradients = True
        self.trained.wrapped.train()
        self.trained.optimizer.zero_grad()

    def take(self, batches: list[dict[str, Any]]) -> tuple[Tensor | None, float]:
        """Make one update from the micro-batches of a step.

        Returns:
            The norm of the gradient before clipping (None if the step was left out), and the learning rate of the first
            group of parameters.
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
        if self.trained.l1 and norm is not None:
            shrink(self.trained.optimizer, self.trained.l1)
        rate = self.trained.schedule.get_last_lr()[0]
        self.trained.schedule.step()
        self.trained.optimizer.zero_grad()
        self.times.end_step()
        self.progress.global_step += 1
        epoch, step = divmod(self.progress.global_step - 1, self.feed.steps_per_epoch)
        rounds = min((step + 1) * self.training.accumulation, self.feed.batches.rounds)
        self.progress.epoch = epoch + rounds / self.feed.batches.rounds
        return norm, rate

    def _accumulate(self, batches: list[dict[str, Any]], items: Tensor | None) -> None:
        accelerator = self.processes.accelerator
        for number, batch in enumerate(batches, start=1):
            accelerator.sync_gradients = last = number == len(batches)  # Gradients are reduced once per step.
            with nullcontext() if last or self.processes.deepspeed else accelerator.no_sync(self.trained.wrapped):
                self.one_pass(batch, items, len(batches))

    def one_pass(self, batch: dict[str, Any], items: Tensor | None, batches: int) -> None:
        """Run forward and backward of a batch as the collator made it; see `Objective.train`."""
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
        """Clip the gradient to `training.max_grad_norm` (0 does not clip).

        Returns:
            The norm before clipping, over all processes.
        """
        largest = self.training.max_grad_norm or float("inf")
        return self.processes.accelerator.clip_grad_norm_(self.trained.wrapped.parameters(), largest)

    def _finite(self, norm: Any) -> Any:
        """Return `norm` if it and the losses are finite; otherwise leave the step out (None) or stop the run.

        Raises:
            MmdoraError: if the run has to stop; the message names the rows, and the module that first gave such a
                value.
        """
        batches, self.in_hand = self.in_hand, []
        # One check of the sum waits for the device only once. The norm is the same in all processes after the
        # reduction, but the loss is not, so the processes have to agree.
        if not self.processes.any(not bool(torch.isfinite(self.losses.sum + norm))):
            return norm
        training, step, done = self.training, self.progress.global_step + 1, self.losses.skipped
        losses = self.processes.gathered(float(self.losses.sum))
        numbers = f"gradient norm {float(norm):g}, loss {' and '.join(f'{loss:g}' for loss in losses)}"
        rows = f"rows {', '.join(self.feed.ids(self.progress.global_step))}"
        if training.on_nonfinite == "skip" and done < training.max_skipped:
            self.losses.leave_out()
            self.trained.optimizer.zero_grad()  # Without gradients the optimizer's step does nothing.
            self.say(f"step {step} left out ({done + 1} of at most {training.max_skipped}): {numbers}; {rows}")
            return None
        places = self.processes.gathered(where_not_finite(self.trained.model, self.objective.again, batches))
        place = next((place for place in places if place != NOT_AGAIN), NOT_AGAIN)
        left_out = f" ({done} steps were left out before)" if done else ""
        skip = ", or set training.on_nonfinite: skip" if training.on_nonfinite == "stop" else ""
        error = MmdoraError(
            f"step {step}: {numbers}; {place}; {rows}; the update was not made and nothing of it was saved{left_out}. "
            f"Look at these rows or lower training.lr{skip}"
        )
        error.told = not self.processes.main
        raise error

    def count_flops(self) -> None:
        """Add the floating-point operations since the last call to `progress`."""
        tokens, self._tokens = sum(self.processes.gathered(self._tokens)), 0
        self.progress.total_flos += self._flops_per_token * tokens


def _in_pieces(batches: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    return [piece for batch in batches for piece in batch.get("pieces", [batch])]
