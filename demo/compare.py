"""Lets one to four models answer the same conversation about one or two pictures, at the same time. Without Gradio."""

from __future__ import annotations

import random
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, Literal

import torch
from PIL import Image

from mmdora.errors import MmdoraError
from mmdora.families import Prompt
from mmdora.predict.answers import Partial
from mmdora.records.images import decode, read_header

MAX_COLUMNS = 4
MAX_TURNS = 20
MAX_QUESTION = 8_000  # Characters of question and system prompt together: far longer than a question about a picture.
MAX_TOKENS = 1_024
MAX_UPLOAD = 10 * 10**6  # Bytes of an uploaded file: photos of phones are smaller.
MAX_UPLOAD_PIXELS = 20 * 10**6  # Pixels of an upload: in RGB they take 60 MB, which strangers can make the server hold.
REFRESH = 0.05  # Seconds between two states of a growing answer; the eye sees no more.
HEARTBEAT = 0.5  # Seconds until the same state is sent again: sending shows whether the visitor has left.

_devices: defaultdict[str, threading.Lock] = defaultdict(threading.Lock)
"""Device or server -> its lock. Each answers only one question at a time, so that timings are fair."""


@dataclass(frozen=True)
class AnswerSettings:
    """Settings of the generation, which are the same for every model.

    Raises:
        MmdoraError: if a value is out of range or of the wrong type; the message names it.
    """

    max_tokens: int = 128
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    system_prompt: str = ""

    def __post_init__(self) -> None:
        _within("max tokens", self.max_tokens, 1, MAX_TOKENS, whole=True)
        _within("temperature", self.temperature, 0, 2)
        _within("top-p", self.top_p, 0.01, 1)
        _within("seed", self.seed, 0, 2**53, whole=True)
        if not isinstance(self.system_prompt, str):
            raise MmdoraError(f"system prompt: expected text, found {type(self.system_prompt).__name__}")
        object.__setattr__(self, "system_prompt", self.system_prompt.strip())


@dataclass(frozen=True)
class ModelColumn:
    """One model on the page.

    Attributes:
        name: name of the column.
        kind: a line that describes the model.
        place: device or server of the model. Columns of one place answer in turn, so that timings are fair.
        speak: function that yields the growing answer to a prompt; it ends soon after the event is set.
    """

    name: str
    kind: str
    place: str
    speak: Callable[[Prompt, AnswerSettings, threading.Event], Iterator[Partial]]


Status = Literal["idle", "queued", "waiting", "running", "done", "stopped", "failed"]


@dataclass(frozen=True)
class Answer:
    """The state of one column; timings leave out waiting for the other columns.

    Attributes:
        position: position of the question in the queue, from 1; None once it is being answered.
    """

    name: str
    status: Status = "idle"
    text: str = ""
    tokens: int = 0
    first_token_s: float | None = None
    tokens_per_s: float | None = None
    error: str | None = None
    position: int | None = None

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Turn:
    """A question and the answers to it, in the order of the columns.

    Attributes:
        order: indices of the columns as they are shown, from left to right.
        blind: whether names are hidden until there is a vote.
        vote: name of a column, "tie" or "all bad"; None if nobody has voted.
    """

    question: str
    settings: AnswerSettings
    answers: tuple[Answer, ...]
    order: tuple[int, ...]
    blind: bool = False
    vote: str | None = None

    @property
    def hidden(self) -> bool:
        return self.blind and self.vote is None

    @property
    def over(self) -> bool:
        return all(answer.status in ("done", "stopped", "failed") for answer in self.answers)


def new_turn(columns: Sequence[ModelColumn], question: str, settings: AnswerSettings, *, blind: bool = False) -> Turn:
    """Make a turn that waits for its answers. If it is blind, the columns are shown in a random order."""
    order = list(range(len(columns)))
    if blind:
        random.shuffle(order)
    waiting = tuple(Answer(column.name, "waiting") for column in columns)
    return Turn(question, settings, waiting, tuple(order), blind)


def prompt_of(turns: Sequence[Turn], index: int, images: Sequence[Image.Image]) -> Prompt:
    """The conversation of column `index`, ending with the question of the last turn.

    Each model sees its own earlier answers. A turn in which it gave no answer is left out.
    """
    *earlier, last = turns
    kept = [turn for turn in earlier if turn.answers[index].text]
    messages: list[dict[str, Any]] = []
    if last.settings.system_prompt:
        messages.append({"role": "system", "content": [_text(last.settings.system_prompt)]})
    for turn in kept:
        messages.append({"role": "user", "content": [_text(turn.question)]})
        messages.append({"role": "assistant", "content": [_text(turn.answers[index].text)]})
    messages.append({"role": "user", "content": [_text(last.question)]})
    first = next(message for message in messages if message["role"] == "user")
    first["content"] = [{"type": "image"}] * len(images) + first["content"]
    return Prompt(messages, list(images))


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
            with _devices[place]:
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
            state = replace(state, **asdict(part))
            yield state
        yield replace(state, status="stopped" if stop.is_set() else "done")
    except Exception as error:
        yield replace(state, status="failed", error=reason(error))


def check_upload(path: Path) -> None:
    """Check an uploaded file without decoding its pixels.

    Raises:
        MmdoraError: if the file is too large, is no image, or has too many pixels. The message never says where the
            server keeps the file.
    """
    with _opened(path) as file:
        read_header(file, "upload", max_pixels=MAX_UPLOAD_PIXELS)


def read_image(path: Path) -> Image.Image:
    """Read an uploaded file as RGB.

    Raises:
        MmdoraError: in the cases of `check_upload`, or if the pixels are damaged.
    """
    with _opened(path) as file:
        return decode(file.read(), "upload", max_pixels=MAX_UPLOAD_PIXELS)


def check_question(question: Any, settings: AnswerSettings) -> str:
    """Give the question without white space around it.

    Raises:
        MmdoraError: if it is empty, not a text, or too long.
    """
    if not isinstance(question, str) or not question.strip():
        raise MmdoraError("Type a question first.")
    if (size := len(question) + len(settings.system_prompt)) > MAX_QUESTION:
        raise MmdoraError(f"Question and system prompt have {size:,} characters; the limit is {MAX_QUESTION:,}.")
    return question.strip()


def reason(error: Exception) -> str:
    """The reason why a model failed, as a line for its column, without the paths of a traceback."""
    if isinstance(error, torch.OutOfMemoryError):
        torch.cuda.empty_cache()
        return "out of memory; ask for fewer tokens or a smaller picture"
    text = " ".join(str(error).split())[:300]
    return text if isinstance(error, MmdoraError) else f"{type(error).__name__}: {text}"


def _opened(path: Path) -> Any:
    try:
        if path.stat().st_size > MAX_UPLOAD:
            raise MmdoraError(f"image: larger than {MAX_UPLOAD // 10**6} MB")
        return path.open("rb")
    except OSError:
        raise MmdoraError("The picture is no longer on the server; choose it again.") from None


def _text(text: str) -> dict[str, str]:
    return {"type": "text", "text": text}


def _within(name: str, value: Any, low: float, high: float, *, whole: bool = False) -> None:
    number = isinstance(value, int if whole else (int, float)) and not isinstance(value, bool)
    if not (number and low <= value <= high):
        kind = "a whole number" if whole else "a number"
        raise MmdoraError(f"{name}: expected {kind} from {low} to {high}, found {value!r:.40}")
