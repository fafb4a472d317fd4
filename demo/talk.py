"""What happens on the controls of the tab "Compare": questions, answers, votes. Each visitor's tab has a session."""

from __future__ import annotations

import threading
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import replace
from functools import partial
from typing import Any

import gradio as gr

from mmdora.demo import session
from mmdora.demo.boxes import boxes_html
from mmdora.demo.cards import conversation_html, tally_html
from mmdora.demo.line import Line
from mmdora.demo.session import Session, Sessions
from mmdora.demo.turns import Answer, AnswerSettings, ModelColumn
from mmdora.demo.uploads import upload_paths
from mmdora.demo.votes import Votes
from mmdora.errors import MmdoraError


class Talk:
    """Answers the events of the tab; each method gives the updates of the widgets that `app` names for its event.

    Args:
        columns: the models.
        line: the queue that the questions of all visitors wait in.
        votes: counts and keeps the votes of blind comparisons.
        pairs: title -> names of two models between whose answers words can be marked, the default first.
    """

    def __init__(self, columns: Sequence[ModelColumn], line: Line, votes: Votes, pairs: Mapping[str, tuple[str, str]]):
        self.columns, self.line, self.votes, self.pairs = columns, line, votes, pairs
        self.kinds = {column.name: column.kind for column in columns}
        self.sessions = Sessions(Session)

    def begin(self, request: gr.Request) -> list[Any]:
        tab = self.of(request)
        if not tab.busy:
            tab.stop = threading.Event()
        return [*self.controls(tab, busy=True), gr.update(open=False), gr.update(open=False)]

    async def ask(
        self, request: gr.Request, image: Any, second: Any, question: Any, *given: Any
    ) -> AsyncGenerator[Any, None]:
        async with aclosing(self._talk(request, (image, second), question, given)) as states:
            async for state in states:
                yield state

    async def again(self, request: gr.Request, *given: Any) -> AsyncGenerator[Any, None]:
        tab = self.of(request)
        if tab.turns and not tab.busy:
            *tab.turns, last = tab.turns
            first, second, *_ = (*({"path": str(picture)} for picture in tab.pictures), None, None)
            async with aclosing(
                self._talk(request, (first, second), last.question, given, keep=[*tab.turns, last])
            ) as states:
                async for state in states:
                    yield state
        else:
            yield [gr.skip(), gr.skip(), gr.skip(), *self.controls(tab)]

    async def _talk(
        self, request: gr.Request, pictures: tuple[Any, Any], question: Any, given: Sequence[Any], keep: Any = None
    ) -> AsyncGenerator[Any, None]:
        tab, (*values, blind) = self.of(request), given
        problem = None
        try:
            async with aclosing(
                session.ask(
                    tab,
                    self.columns,
                    self.line,
                    upload_paths(*pictures),
                    question,
                    AnswerSettings(*values),
                    blind is True,
                )
            ) as steps:
                rest: list[Any] = []  # These parts do not change while an answer grows, so they are shown once.
                async for _ in steps:
                    if tab.closed:
                        break
                    if not rest:
                        rest = [self._earlier(tab), "" if keep is None else gr.skip(), *[gr.skip()] * 7]
                    yield [self._newest(tab), *rest]
                    rest = [gr.skip()] * 9
        except MmdoraError as error:
            problem = gr.Error(str(error), print_exception=False)
            if keep is not None:
                tab.turns = keep
        if tab.closed:  # A state that was on its way may arrive after Clear's reply.
            yield [*self.html(self.sessions.now(str(request.session_hash))), *[gr.skip()] * 8]
        else:
            yield [*self.html(tab), gr.skip(), *self.controls(tab)]
        if problem:
            raise problem
        yield [gr.skip()] * 10  # Gradio sends the last state once more, and this may come after Clear's reply.

    def stop(self, request: gr.Request) -> None:
        self.of(request).stop.set()

    def edit(self, request: gr.Request) -> list[Any]:
        tab = self.of(request)
        if not tab.turns or tab.busy:
            return [*[gr.skip()] * 3, *self.controls(tab)]
        last = tab.turns.pop()
        return [*self.html(tab), last.question, *self.controls(tab)]

    def clear(self, request: gr.Request) -> list[Any]:
        self.sessions.close(str(request.session_hash))
        tab = self.of(request)
        return [None, None, *self.html(tab), "", *self.controls(tab)]

    def vote(self, place: int | str) -> Callable[[gr.Request], list[Any]]:
        def vote(request: gr.Request) -> list[Any]:
            tab = self.of(request)
            try:
                voted = tab.voted(place)
                tab.vote = self.votes.add(voted, tab.digests)
                tab.turns[-1] = voted
            except MmdoraError as error:
                raise gr.Error(str(error), print_exception=False) from None
            return [self.tally(), *self.html(tab), gr.skip(), *self.controls(tab)]

        return vote

    def undo(self, request: gr.Request) -> list[Any]:
        """Take the last vote back. The names stay shown: a second vote on this turn would not be blind."""
        tab = self.of(request)
        if tab.undoable and tab.vote is not None:
            try:
                self.votes.take_back(tab.turns[-1], tab.vote)
            except MmdoraError as error:
                raise gr.Error(str(error), print_exception=False) from None
            tab.turns[-1], tab.vote = replace(tab.turns[-1], vote=None, blind=False), None
        return [self.tally(), *self.html(tab), gr.skip(), *self.controls(tab)]

    def choose_pair(self, request: gr.Request, pair: Any) -> tuple[str, str]:
        tab = self.of(request)
        tab.pair = self.pairs.get(pair, tab.pair)
        return self.html(tab)

    def of(self, request: gr.Request) -> Session:
        return self.sessions[str(request.session_hash)]

    def html(self, tab: Session) -> tuple[str, str]:
        """The HTML of the newest turn, and of the turns before it."""
        return self._newest(tab), self._earlier(tab)

    def _newest(self, tab: Session) -> str:
        return conversation_html(tab.turns[-1:], self.kinds, self._pair(tab), len(tab.turns), self._draw(tab))

    def _earlier(self, tab: Session) -> str:
        return conversation_html(tab.turns[:-1], self.kinds, self._pair(tab), draw=self._draw(tab))

    def _draw(self, tab: Session) -> Callable[[Answer], str]:
        finders = {column.name: column.boxes for column in self.columns}
        return partial(boxes_html, finders, next(iter(tab.pictures), None))

    def _pair(self, tab: Session) -> tuple[str, str] | None:
        return tab.pair or next(iter(self.pairs.values()), None)

    def controls(self, tab: Session, *, busy: bool = False) -> list[Any]:
        """Updates for the buttons ask, stop, retry and edit, and for the rows with votes, their undoing and results."""
        busy = busy or tab.busy  # An error of another question must not take away the button that stops this one.
        free = not busy and bool(tab.turns)
        states = [gr.update(interactive=on) for on in (not busy, busy, free, free)]
        rows = (not busy and tab.votable, not busy and tab.undoable, free)
        return [*states, *(gr.update(visible=shown) for shown in rows)]

    def tally(self) -> str:
        return tally_html(self.votes.tally() or {}, self.votes.counts)
