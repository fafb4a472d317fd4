"""The queue of questions: one is answered at a time, the others see their position, and a full queue refuses more."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, Callable, Generator
from typing import Any, TypeVar

from mmdora.errors import MmdoraError

LOOK = 0.05  # Seconds between two looks at the queue: too short for a person to notice.
HEARTBEAT = 1.0  # Seconds until a position is sent again: sending shows whether the visitor has left.

State = TypeVar("State")


class Line:
    """A queue of questions, in the order in which they came.

    Args:
        capacity: most questions in the queue, including the one that is being answered.
    """

    def __init__(self, capacity: int):
        self.capacity, self._waiting = capacity, list[object]()

    def __len__(self) -> int:
        return len(self._waiting)

    def join(self) -> object:
        """Enter the queue; gives a ticket, which has to be given to `leave` in the end.

        Raises:
            MmdoraError: if the queue is full.
        """
        if len(self._waiting) >= self.capacity:
            raise MmdoraError(f"Busy: {self.capacity} questions are in the queue already. Try again in a moment.")
        ticket = object()
        self._waiting.append(ticket)
        return ticket

    def position(self, ticket: object) -> int:
        """The number of questions before this one; 0 means that it is this one's turn."""
        return self._waiting.index(ticket)

    def leave(self, ticket: object) -> None:
        self._waiting.remove(ticket)

    async def run(
        self,
        start: Callable[[], Generator[State, None, None]],
        queued: Callable[[int], State],
        stop: threading.Event | None = None,
    ) -> AsyncGenerator[State, None]:
        """Yield `queued(position)` again and again while the question waits, then what `start()` yields.

        All calls come from one event loop. Each step of the generator runs in a thread, and so does closing it,
        which happens however this iterator ends. Setting `stop` ends the waiting too.
        """
        ticket, running = self.join(), None
        loop = asyncio.get_running_loop()
        try:
            told, since = 0, 0.0
            while (position := self.position(ticket)) and not (stop is not None and stop.is_set()):
                if position != told or loop.time() - since >= HEARTBEAT:
                    told, since = position, loop.time()
                    yield queued(position)
                await asyncio.sleep(LOOK)
            if position == 0:
                running = start()
                while (state := await _shielded(next, running, None)) is not None:
                    yield state
        finally:
            try:
                if running is not None:
                    await _shielded(running.close)
            finally:
                self.leave(ticket)


async def _shielded(step: Callable[..., Any], *args: Any) -> Any:
    """Take a step in a thread. If cancelled meanwhile, wait for its end first: a running generator cannot be closed."""
    running = asyncio.ensure_future(asyncio.to_thread(step, *args))
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        await asyncio.wait([running])
        raise
