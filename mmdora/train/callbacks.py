"""Calls `transformers` callbacks from the training loop, and does what they ask for.

They get what `Trainer` would give them: its arguments and state with the same names, model, optimizer and schedule.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from mmdora.config import RunConfig
from mmdora.errors import MmdoraError
from mmdora.train.early_stopping import LOSS, metric
from mmdora.train.processes import Processes
from mmdora.train.progress import OURS, Progress

Callback = TrainerCallback
NEVER = ("on_substep_end", "on_pre_optimizer_step", "on_optimizer_step", "on_push_begin")
"""Events inside a step or of `Trainer` alone, which this loop does not have."""
WISHES = ("should_log", "should_evaluate", "should_save", "should_training_stop")


@dataclass(frozen=True)
class Wishes:
    """What any callback, in any process, asks for."""

    log: bool = False
    evaluate: bool = False
    save: bool = False
    stop: bool = False


def check_callbacks(callbacks: Sequence[Any]) -> None:
    """Raise an MmdoraError for what is no callback, and for one that waits for an event that never comes."""
    for callback in callbacks:
        if not isinstance(callback, Callback):
            hint = " (give an instance)" if isinstance(callback, type) else ""
            raise MmdoraError(f"callbacks: {callback!r:.80} is no transformers.TrainerCallback{hint}")
        for event in NEVER:
            if getattr(type(callback), event) is not getattr(Callback, event):
                raise MmdoraError(f"callbacks: {type(callback).__name__}.{event} is never called by this loop")


class Callbacks:
    """The callbacks of a run; without any, every method does nothing.

    Args:
        given: what is passed to each event, as `Trainer` does: model, processing_class, optimizer, lr_scheduler.
        steps_per_epoch: optimizer steps after which an epoch ends.
    """

    def __init__(
        self,
        callbacks: Sequence[Callback],
        config: RunConfig,
        processes: Processes,
        given: Mapping[str, Any],
        steps_per_epoch: int,
    ):
        self.callbacks, self.processes, self.given = callbacks, processes, given
        self.steps_per_epoch, self.control = steps_per_epoch, TrainerControl()
        if callbacks:
            self.args, self.state = _arguments(config, processes), _state(config, processes)
            self._call("on_init_end")

    def begin(self, progress: Progress) -> None:
        self._call("on_train_begin", progress)

    def step_begins(self, progress: Progress) -> None:
        if progress.global_step % self.steps_per_epoch == 0:
            self._call("on_epoch_begin", progress)
        self._call("on_step_begin", progress)

    def step_ended(self, progress: Progress) -> Wishes:
        """Tell the callbacks; gives what they ask for before the next step.

        Raises:
            MmdoraError: one asks to end the epoch, which this loop cannot.
        """
        if not self.callbacks:
            return Wishes()
        self._call("on_step_end", progress)
        if progress.global_step % self.steps_per_epoch == 0:
            self._call("on_epoch_end", progress)
        if self.control.should_epoch_stop:
            raise MmdoraError("a callback set should_epoch_stop; this loop has no such stop, use should_training_stop")
        wishes = Wishes(*(self.processes.any(getattr(self.control, name)) for name in WISHES))
        self.control.should_log = self.control.should_evaluate = self.control.should_save = False
        return wishes

    def log(self, progress: Progress, logs: dict[str, Any]) -> None:
        self._call("on_log", progress, logs=logs)

    def evaluated(self, progress: Progress, metrics: Mapping[str, float]) -> None:
        self._call("on_evaluate", progress, metrics=dict(metrics))

    def saved(self, progress: Progress) -> None:
        self._call("on_save", progress)

    def stop(self) -> bool:
        """Whether any callback wants the run to end."""
        return bool(self.callbacks) and self.processes.any(self.control.should_training_stop)

    def end(self, progress: Progress) -> None:
        self._call("on_train_end", progress)

    def _call(self, event: str, progress: Progress | None = None, **more: Any) -> None:
        for callback in self.callbacks:
            if progress is not None:
                for known in fields(progress):
                    if known.name != OURS:
                        setattr(self.state, known.name, getattr(progress, known.name))
            called = getattr(callback, event)(self.args, self.state, self.control, **self.given, **more)
            self.control = self.control if called is None else called


def _arguments(config: RunConfig, processes: Processes) -> TrainingArguments:
    training = config.training
    evaluates, saves = training.eval_every is not None, training.save_every is not None
    return TrainingArguments(
        output_dir=str(training.output),
        per_device_train_batch_size=training.batch_size,
        gradient_accumulation_steps=training.accumulation,
        learning_rate=training.lr,
        num_train_epochs=training.epochs,
        max_steps=training.steps or -1,
        max_grad_norm=training.max_grad_norm,
        weight_decay=training.weight_decay,
        logging_steps=training.log_every,
        eval_strategy="steps" if evaluates else "no",
        eval_steps=training.eval_every,
        save_strategy="steps" if saves else "no",
        save_steps=training.save_every or 500,
        load_best_model_at_end=evaluates and saves,
        metric_for_best_model=metric(config) if evaluates else None,
        greater_is_better=metric(config) != LOSS if evaluates else None,
        seed=training.seed,
        report_to=[],
        use_cpu=processes.device.type == "cpu",
        # Without this, the arguments would undo the state of the processes that this run has made.
        accelerator_config={"use_configured_state": True},
    )


def _state(config: RunConfig, processes: Processes) -> TrainerState:
    training = config.training
    return TrainerState(
        is_local_process_zero=processes.accelerator.is_local_main_process,
        is_world_process_zero=processes.main,
        num_train_epochs=int(-(-training.epochs // 1)),
        logging_steps=training.log_every,
        eval_steps=training.eval_every or 0,
        save_steps=training.save_every or 0,
        train_batch_size=training.batch_size,
    )
