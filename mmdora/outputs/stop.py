"""SIGTERM and Ctrl-C: a command ends with one line that says what is left and how to go on."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from mmdora.errors import Interrupted

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class _Stopped(KeyboardInterrupt):
    """It is no Exception, so no handler of errors takes it for one."""


@contextmanager
def handling(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Handle both signals inside the block. In a thread Python allows no handlers, so nothing is done."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in SIGNALS}
    for number in before:
        signal.signal(number, handler)
    try:
        yield
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier)


@contextmanager
def stoppable(left: Callable[[], str], *, main: bool = True) -> Iterator[None]:
    """Let a signal end the block at once, after its own clean-up.

    Args:
        left: what is left, and how to go on, in words; called after the clean-up.
        main: whether this is the process of several that tells the line.

    Raises:
        Interrupted: a signal came; its exit code is 128 and the signal's number.
    """
    came: list[signal.Signals] = []

    def stop(number: int, frame: FrameType | None) -> None:
        came.append(signal.Signals(number))
        raise _Stopped

    try:
        with handling(stop):
            yield
    except BaseException as error:
        # What the signal broke off may have made another error of it.
        if not came or not isinstance(error, (Exception, KeyboardInterrupt)):
            raise
        stopped = Interrupted(f"{came[0].name}: stopped; {left()}", 128 + came[0])
        stopped.told = not main
        raise stopped from error


def leave_to_parent() -> None:
    """Let the parent alone answer Ctrl-C, in a worker process; SIGTERM ends the worker at once."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
