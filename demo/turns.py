"""What is asked and answered: the settings, the columns, and the turns of a conversation. Without Gradio."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from PIL import Image

from mmdora.errors import MmdoraError
from mmdora.evaluate.tasks import Task
from mmdora.families import Prompt
from mmdora.predict.answers import Partial, Token
from mmdora.records.boxes import Box, Size
from mmdora.records.row import Row

MAX_COLUMNS = 4
MAX_TURNS = 20
MAX_QUESTION = 8_000  # Characters of question and system prompt together: far longer than a question about a picture.
MAX_TOKENS = 1_024
MAX_STRENGTH = 1.5  # Beyond it answers of most adapters fall apart.
TIE, ALL_BAD, UNDONE = "tie", "all bad", "undone"
"""The votes that choose no model, and the word in a file of votes that takes an earlier vote back."""


@dataclass(frozen=True)
class AnswerSettings:
    """Settings of the generation, which are the same for every model.

    Attributes:
        strength: how much of each adapter acts; other than 1 for adapters on a shared base only.

    Raises:
        MmdoraError: if a value is out of range or of the wrong type; the message names it.
    """

    max_tokens: int = 128
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    system_prompt: str = ""
    strength: float = 1.0

    def __post_init__(self) -> None:
        _within("max tokens", self.max_tokens, 1, MAX_TOKENS, whole=True)
        _within("temperature", self.temperature, 0, 2)
        _within("top-p", self.top_p, 0.01, 1)
        _within("seed", self.seed, 0, 2**53, whole=True)
        _within("how much adapter", self.strength, 0, MAX_STRENGTH)
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
        sees: whether the model reads pictures.
        scales: whether `AnswerSettings.strength` acts on it.
        reply: function that gives the greedy answers to the questions of a task, in a batch; None if the model answers
            one prompt at a time only, as one behind a server does.
        boxes: function that finds the boxes in an answer about a picture of a size, as shares of the picture.
    """

    name: str
    kind: str
    place: str
    speak: Callable[[Prompt, AnswerSettings, threading.Event], Iterator[Partial]]
    sees: bool = True
    scales: bool = False
    reply: Callable[[Task, Sequence[Row], threading.Event], list[str]] | None = None
    boxes: Callable[[str, Size], list[Box]] = lambda text, size: []


Status = Literal["idle", "queued", "waiting", "running", "done", "stopped", "failed"]


@dataclass(frozen=True)
class Answer:
    """The state of one column; timings leave out waiting for the other columns.

    Attributes:
        position: position of the question in the queue, from 1; None once it is being answered.
        first_tokens: the first tokens with their probabilities; empty for a model on a server.
    """

    name: str
    status: Status = "idle"
    text: str = ""
    tokens: int = 0
    first_token_s: float | None = None
    tokens_per_s: float | None = None
    error: str | None = None
    position: int | None = None
    first_tokens: tuple[Token, ...] = ()

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


def _text(text: str) -> dict[str, str]:
    return {"type": "text", "text": text}


def _within(name: str, value: Any, low: float, high: float, *, whole: bool = False) -> None:
    number = isinstance(value, int if whole else (int, float)) and not isinstance(value, bool)
    if not (number and low <= value <= high):
        kind = "a whole number" if whole else "a number"
        raise MmdoraError(f"{name}: expected {kind} from {low} to {high}, found {value!r:.40}")
