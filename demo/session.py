"""Keeps the conversation of each open tab, and lets tabs ask questions. Without Gradio."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import AsyncGenerator, Callable, Generator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from mmdora.demo import compare
from mmdora.demo.line import Line
from mmdora.demo.pictures import check_upload, read_image
from mmdora.demo.turns import MAX_TURNS, TIE, Answer, AnswerSettings, ModelColumn, Turn, check_question, new_turn
from mmdora.errors import MmdoraError
from mmdora.files import sha256

KEPT = 1_000  # Most tabs that are kept. When one more comes, the tab that was unused for longest is forgotten.


@dataclass
class Session:
    """The conversation of one tab.

    Attributes:
        turns: questions and answers so far.
        pictures: files that the conversation is about.
        digests: SHA-256 of each picture.
        vote: name of the vote on the last turn, by which it can be taken back.
        name: name under which it is kept; empty before it is.
        pair: names of the two models between whose answers words are marked, once the reader has chosen them.
        stop: ends the current answer when it is set.
        busy: whether a question is waiting or being answered.
        closed: whether the tab was closed or forgotten.
    """

    turns: list[Turn] = field(default_factory=list)
    pictures: tuple[Path, ...] = ()
    digests: tuple[str, ...] = ()
    vote: str | None = None
    name: str = ""
    pair: tuple[str, str] | None = None
    stop: threading.Event = field(default_factory=threading.Event)
    busy: bool = False
    closed: bool = False

    @property
    def votable(self) -> bool:
        return bool(self.turns) and not self.busy and self.turns[-1].hidden and self.turns[-1].over

    def voted(self, place: int | str) -> Turn:
        """The last turn with a vote added.

        Args:
            place: place of the best answer, counted from the left from 0; or "tie" or "all bad". The place of an
                answer that another model gave as well counts as "tie".

        Raises:
            MmdoraError: if there is nothing to vote on.
        """
        if not self.votable:
            raise MmdoraError("There is no blind comparison that waits for a vote.")
        turn = self.turns[-1]
        if isinstance(place, str):
            return replace(turn, vote=place)
        best = turn.answers[turn.order[place]]
        # A vote for an answer that another model gave too, word for word, says nothing about the two models.
        given = sum(answer.text == best.text for answer in turn.answers)
        return replace(turn, vote=TIE if given > 1 else best.name)

    @property
    def undoable(self) -> bool:
        return self.vote is not None and not self.busy and bool(self.turns) and self.turns[-1].vote is not None

    def close(self) -> None:
        self.closed = True
        self.stop.set()


class Closable(Protocol):
    """What `Sessions` keeps for a tab."""

    def close(self) -> None: ...


Kept = TypeVar("Kept", bound=Closable)


class Sessions(Generic[Kept]):
    """What is kept for each open tab, by the key that Gradio gives the tab.

    Args:
        make: makes it for a new tab.
    """

    def __init__(self, make: Callable[[], Kept]):
        self._make, self._lock = make, threading.Lock()
        self._open: OrderedDict[str, Kept] = OrderedDict()

    def __getitem__(self, key: str) -> Kept:
        with self._lock:
            session = self._open[key] if key in self._open else self._open.setdefault(key, self._make())
            self._open.move_to_end(key)
            while len(self._open) > KEPT:
                self._open.popitem(last=False)[1].close()
            return session

    def now(self, key: str) -> Kept:
        """The session, without marking it as used. If the tab is gone, an empty session that is not kept."""
        with self._lock:
            return self._open[key] if key in self._open else self._make()

    def close(self, key: str) -> None:
        with self._lock:
            session = self._open.pop(key, None)
        if session is not None:
            session.close()


async def ask(
    session: Session,
    columns: Sequence[ModelColumn],
    line: Line,
    pictures: tuple[Path, ...],
    question: Any,
    settings: AnswerSettings,
    blind: bool,
) -> AsyncGenerator[None, None]:
    """Put a question into the queue, and yield after each change of the session's last turn.

    If the pictures differ from those before, a new conversation begins.

    Raises:
        MmdoraError: if the question or a picture cannot be used, if the conversation is too long, or if the queue is
            full. The session is then unchanged.
    """
    question = check_question(question, settings)
    for picture in pictures:
        check_upload(picture)
    digests = tuple(map(sha256, pictures))
    if session.busy:
        raise MmdoraError("The last question of this tab is still being answered; stop it first.")
    earlier = session.turns if digests == session.digests else []
    if len(earlier) >= MAX_TURNS:
        raise MmdoraError(f"A conversation has at most {MAX_TURNS} questions; clear it first.")
    turn = new_turn(columns, question, settings, blind=blind and len(columns) > 1)
    turns, stop = [*earlier, turn], session.stop
    steps = line.run(
        lambda: answers(columns, turns, pictures, stop),
        lambda position: tuple(Answer(column.name, "queued", position=position) for column in columns),
        stop,
    )
    session.busy, asked = True, False
    try:
        async for states in steps:
            turn, asked = replace(turn, answers=states), True
            session.turns, session.pictures, session.digests = [*earlier, turn], pictures, digests
            yield
    finally:
        await steps.aclose()
        session.busy = False
        if asked:
            session.turns = [*earlier, replace(turn, answers=tuple(map(_ended, turn.answers)))]


def answers(
    columns: Sequence[ModelColumn], turns: Sequence[Turn], pictures: Sequence[Path], stop: threading.Event | None = None
) -> Generator[tuple[Answer, ...], None, None]:
    """Call `compare.answer`. The pictures are decoded only here, when it is the question's turn, to save memory."""
    yield from compare.answer(columns, turns, list(map(read_image, pictures)), stop)


def _ended(answer: Answer) -> Answer:
    """The final state of an answer whose question has ended: if it was not finished, it was stopped."""
    if answer.status in ("queued", "waiting", "running"):
        return replace(answer, status="stopped", position=None)
    return answer
