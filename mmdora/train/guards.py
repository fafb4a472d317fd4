"""What stops a run before it ruins itself, and how a run is stopped from outside."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any

from torch import Tensor, nn

from mmdora.train.processes import Processes

NOT_AGAIN = "run once more, the same rows gave finite values (dropout draws anew)"


class StopRequest:
    """SIGTERM and SIGINT end the run after the step in hand, with a checkpoint; a second SIGINT ends it at once."""

    def __init__(self, processes: Processes) -> None:
        self.processes = processes
        self.signal: signal.Signals | None = None

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Handle both signals; in a thread, where Python allows no handlers, leave them alone."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
        for number in before:
            signal.signal(number, self._ask)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self.signal is signal.SIGINT and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal = signal.Signals(number)

    def asked(self) -> bool:
        """Whether any process was asked to stop.

        A signal reaches the processes in different steps. All call this after each step, and so stop after the same.
        """
        asked = self.processes.any(self.signal is not None)
        if asked and self.signal is None:
            self.signal = signal.SIGTERM
        return asked


def where_not_finite(model: nn.Module, loss_of: Callable[[Any], Tensor], batches: Sequence[Any]) -> str:
    """Where a loss or gradient stops being finite, found by running the batches once more.

    Args:
        loss_of: batch -> scalar loss, under the run's own autocast.

    Returns:
        The first module whose output is not finite, else the parameter nearest to the loss whose
        gradient is not, else what can be said when neither comes again (dropout draws anew).
    """
    for parameter in model.parameters():
        if not bool(parameter.isfinite().all()):
            name = next(name for name, other in model.named_parameters() if other is parameter)
            return f"the parameter {name} is not finite itself"
    found: list[str] = []
    hooks = [
        module.register_forward_hook(lambda _, __, out, name=name: found.append(name) if not _finite(out) else None)
        for name, module in model.named_modules()
        if name and not any(True for _ in module.children())
    ]
    try:
        for batch in batches:
            model.zero_grad()
            loss = loss_of(batch)
            if found:
                return f"it began in the output of {found[0]}"
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
