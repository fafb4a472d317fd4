"""Stops a run on a signal, and finds the place where a loss or gradient stopped being finite."""

from __future__ import annotations

import signal
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from types import FrameType
from typing import Any

from torch import Tensor, nn

from mmdora.outputs.stop import handling
from mmdora.train.processes import Processes

NOT_AGAIN = "run once more, the same rows gave finite values (dropout draws anew)"


class StopRequest:
    """Lets SIGTERM and SIGINT end a run after the current step, with a checkpoint; a second SIGINT ends it at once."""

    def __init__(self, processes: Processes) -> None:
        self.processes = processes
        self.signal: signal.Signals | None = None

    def listening(self) -> AbstractContextManager[None]:
        """Handle both signals inside the block."""
        return handling(self._ask)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self.signal is signal.SIGINT and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal = signal.Signals(number)

    def asked(self) -> bool:
        """Whether any process was asked to stop.

        A signal may reach the processes in different steps. All processes call this after each step, so that all stop
        after the same one.
        """
        asked = self.processes.any(self.signal is not None)
        if asked and self.signal is None:
            self.signal = signal.SIGTERM
        return asked


def where_not_finite(model: nn.Module, loss_of: Callable[[Any], Tensor], batches: Sequence[Any]) -> str:
    """Find where a loss or gradient stops being finite, by running the batches once more.

    Args:
        loss_of: function batch -> scalar loss, under the run's own autocast.
        batches: the batches of the step.

    Returns:
        A phrase that names the first module whose output is not finite, or else the parameter nearest to the loss whose
        gradient is not finite. `NOT_AGAIN` if everything is finite this time, because dropout draws anew.
    """
    for parameter in model.parameters():
        if not bool(parameter.isfinite().all()):
            name = next(name for name, other in model.named_parameters() if other is parameter)
            return f"the parameter {name} is not finite itself"
    not_finite: list[str] = []
    hooks = [
        module.register_forward_hook(
            lambda _, __, out, name=name: not_finite.append(name) if not _finite(out) else None
        )
        for name, module in model.named_modules()
        if name and not any(True for _ in module.children())
    ]
    try:
        for batch in batches:
            model.zero_grad()
            loss = loss_of(batch)
            if not_finite:
                return f"it began in the output of {not_finite[0]}"
            if not bool(loss.isfinite()):
                return "the loss itself is the first that is not finite"
            loss.backward()
            names = [n for n, p in model.named_parameters() if p.grad is not None and not bool(p.grad.isfinite().all())]
            if names:
                return f"it began in the gradient of {names[-1]}"
    finally:
        for hook in hooks:
            hook.remove()
        model.zero_grad()
    return NOT_AGAIN


def _finite(out: Any) -> bool:
    if isinstance(out, Tensor):
        return not out.is_floating_point() or bool(out.isfinite().all())
    return all(map(_finite, out)) if isinstance(out, (tuple, list)) else True
