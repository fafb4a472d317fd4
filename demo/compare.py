"""Lets one to four models answer the same conversation about one or two pictures, at the same time. Without Gradio."""

from __future__ import annotations

import random
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import replace
from queue import Empty, SimpleQueue

import torch
from PIL import Image

from mmdora.demo.turns import Answer, ModelColumn, Turn, prompt_of
from mmdora.errors import MmdoraError
from mmdora.families import Prompt

REFRESH = 0.05  # Seconds between two states of a growing answer; the eye sees no more.
HEARTBEAT = 0.5  # Seconds until the same state is sent again: sending shows whether the visitor has left.

_devices: defaultdict[str, threading.Lock] = defaultdict(threading.Lock)
"""Device or server -> its lock. Each answers only one question at a time, so that timings are fair."""


def held(place: str) -> threading.Lock:
    """The lock of a device or server, for a `with` block in which one of its models answers."""
    return _devices[place]


def answer(
    columns: Sequence[ModelColumn],
    turns: Sequence[Turn],
    images: Sequence[Image.Image],
    stop: threading.Event | None = None,
) -> Generator[tuple[Answer, ...], None, None]:
    """Yield the states of all columns in the last turn, again and again while they answer.

    Columns of one place answer one after the other, in an order that is drawn anew for each question. Different places
    answer at the same time. If a model fails, its own column shows the reason, and the others still answer. Closing the
    iterator or setting `stop` ends every generation at its next token.

    An answer passes through two threads: `predict.stream` generates it in one, and the thread of its place, below, puts
    the states into a queue. This function merges them.
    """
    stop = stop or threading.Event()
    states = list(turns[-1].answers)
    changes: SimpleQueue[tuple[int, Answer] | None] = SimpleQueue()
    groups: defaultdict[str, list[int]] = defaultdict(list)
    for index, column in enumerate(columns):
        groups[column.place].append(index)

    def work(place: str, chosen: list[int]) -> None:
        random.shuffle(chosen)
        try:
            with held(place):
                for index in chosen:
                    for state in _one(columns[index], lambda i=index: prompt_of(turns, i, images), turns[-1], stop):
                        changes.put((index, state))
        finally:
            changes.put(None)

    threads = [threading.Thread(target=work, args=group, name="mmdora-answer", daemon=True) for group in groups.items()]
    try:
        for thread in threads:
            thread.start()
        yield tuple(states)
        busy, shown = len(threads), 0.0
        while busy:
            try:
                change = changes.get(timeout=HEARTBEAT)
            except Empty:
                yield tuple(states)
                continue
            if change is None:
                busy -= 1
                continue
            index, state = change
            turned = state.status != states[index].status
            states[index] = state
            if turned or time.monotonic() - shown >= REFRESH:
                shown = time.monotonic()
                yield tuple(states)
        yield tuple(states)
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def _one(column: ModelColumn, prompt: Callable[[], Prompt], turn: Turn, stop: threading.Event) -> Iterator[Answer]:
    state = Answer(column.name, "running")
    if stop.is_set():
        yield replace(state, status="stopped")
        return
    yield state
    try:
        for part in column.speak(prompt(), turn.settings, stop):
            state = replace(state, **vars(part))
            yield state
        yield replace(state, status="stopped" if stop.is_set() else "done")
    except Exception as error:
        yield replace(state, status="failed", error=reason(error))


def reason(error: Exception) -> str:
    """The reason why a model failed, as a line for its column, without the paths of a traceback."""
    if isinstance(error, torch.OutOfMemoryError):
        torch.cuda.empty_cache()
        return "out of memory; ask for fewer tokens or a smaller picture"
    text = " ".join(str(error).split())[:300]
    return text if isinstance(error, MmdoraError) else f"{type(error).__name__}: {text}"
