"""Handles the events of the page. `widgets` lays the page out; `compare` and `session` produce what it shows."""

from __future__ import annotations

import threading
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import replace
from itertools import combinations
from typing import Any

import gradio as gr

from mmdora.demo import results
from mmdora.demo.api import compare_api
from mmdora.demo.cards import conversation_html, tally_html, title_html
from mmdora.demo.inside import Inside
from mmdora.demo.inside_tab import inside_tab
from mmdora.demo.line import Line
from mmdora.demo.session import Session, Sessions, ask
from mmdora.demo.turns import ALL_BAD, TIE, AnswerSettings, ModelColumn
from mmdora.demo.uploads import Examples, upload_paths, within_reach
from mmdora.demo.votes import Votes
from mmdora.demo.widgets import Compare
from mmdora.errors import MmdoraError
from mmdora.files import sha256

QUEUE = 64  # Most questions that wait or are answered. Whoever asks one more is told at once that the page is busy.


class Page:
    """The page for some models. Gradio serves its attribute `blocks`.

    Args:
        columns: models to compare.
        examples: pictures with a question each; they are left out if no model reads pictures.
        votes: counts and keeps the votes of blind comparisons.
        inside: content of the second tab.
        queue: most questions that wait or are answered.
    """

    def __init__(
        self, columns: Sequence[ModelColumn], examples: Examples, votes: Votes, inside: Inside, *, queue: int = QUEUE
    ):
        self.columns, self.votes = columns, votes
        self.sees = any(column.sees for column in columns)
        self.kinds = {column.name: column.kind for column in columns}
        # The base is usually named first and the adapters after it, so their pair comes first here.
        names = list(self.kinds)[::-1]
        self.pairs = {f"{b} and {a}": (b, a) for a, b in combinations(names, 2)}
        self.examples = within_reach(examples if self.sees else ())
        self.digests = {sha256(path): number for number, (path, _) in enumerate(self.examples)}
        self.sessions, self.line = Sessions(), Line(queue)
        with gr.Blocks(title="mmdora", analytics_enabled=False) as self.blocks:
            gr.HTML(title_html(pictures=self.sees), js_on_load=None, elem_classes="page-html")
            with gr.Tab("Compare"):
                self._compare_tab()
            inside_tab(inside)
            self.blocks.unload(self._leave)
        # Our own queue tells people their positions. Gradio's queue only has to be large enough.
        self.blocks.queue(max_size=4 * queue, default_concurrency_limit=None, api_open=False)

    def _compare_tab(self) -> None:
        w = Compare(
            self.kinds,
            list(self.pairs),
            self.examples,
            tally=self._tally(),
            note=self._recorded(),
            pictures=self.sees,
        )
        pictures, settings = [w.image, w.second], w.settings
        controls = [w.send, w.stop, w.retry, w.edit, w.vote_row, w.undo_row, w.take_row]
        quiet: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
        at_once: dict[str, Any] = {"queue": False, **quiet}
        # preprocess=False gives raw values: Pillow must not touch an upload before its size is checked.
        # "multiple" lets the next question after Clear begin before the last one has ended.
        slow: dict[str, Any] = {"preprocess": False, "concurrency_limit": None, "trigger_mode": "multiple", **quiet}
        given, shown = [*settings, w.blind], [w.answers, w.earlier, w.question, *controls]
        begun = gr.on([w.question.submit, w.send.click], self._begin, None, controls, **at_once)
        begun.then(self._ask, [*pictures, w.question, *given], shown, **slow)
        w.retry.click(self._begin, None, controls, **at_once).then(self._again, given, shown, **slow)
        w.stop.click(self._stop, None, None, **at_once)
        w.edit.click(self._edit, None, shown, **at_once)
        # These events neither queue nor cancel: when a cancelled event's stream ends, Gradio can lose a queued reply.
        w.clear.click(self._clear, None, [*pictures, *shown], **at_once)
        for button, place in zip(w.ballots, [*range(len(self.columns)), TIE, ALL_BAD], strict=True):
            button.click(self._vote(place), None, [w.tally, *shown], concurrency_limit=None, **quiet)
        w.undo.click(self._undo, None, [w.tally, *shown], concurrency_limit=None, **quiet)
        w.pair.change(self._choose_pair, w.pair, [w.answers, w.earlier], **at_once)
        w.link.click(self._link, [w.question, *given], w.text, **slow).success(
            None, w.text, None, js="(text) => mmdora.copy(text)"
        )
        for button, form, name, kind in (
            (w.markdown, results.as_markdown, "comparison.md", "text/markdown"),
            (w.json, results.as_json, "comparison.json", "application/json"),
        ):
            button.click(self._take(form), None, w.text, **at_once).then(
                None, w.text, None, js=f"(text) => mmdora.save('{name}', '{kind}', text)"
            )
        self.blocks.load(self._open_link, None, [w.image, w.question, *given], **at_once)
        gr.Button(visible=False).click(
            compare_api(self.columns, self.line),
            [w.image, w.question, *settings, w.second],
            gr.JSON(visible=False, label="answers"),
            preprocess=False,
            concurrency_limit=None,
            api_name="compare",
        )

    def _begin(self, request: gr.Request) -> list[Any]:
        tab = self._of(request)
        if not tab.busy:
            tab.stop = threading.Event()
        return self._controls(tab, busy=True)

    async def _ask(
        self, request: gr.Request, image: Any, second: Any, question: Any, *given: Any
    ) -> AsyncGenerator[Any, None]:
        async with aclosing(self._talk(request, (image, second), question, given)) as states:
            async for state in states:
                yield state

    async def _again(self, request: gr.Request, *given: Any) -> AsyncGenerator[Any, None]:
        tab = self._of(request)
        if tab.turns and not tab.busy:
            *tab.turns, last = tab.turns
            first, second, *_ = (*({"path": str(picture)} for picture in tab.pictures), None, None)
            async with aclosing(
                self._talk(request, (first, second), last.question, given, keep=[*tab.turns, last])
            ) as states:
                async for state in states:
                    yield state
        else:
            yield [gr.skip(), gr.skip(), gr.skip(), *self._controls(tab)]

    async def _talk(
        self, request: gr.Request, pictures: tuple[Any, Any], question: Any, given: Sequence[Any], keep: Any = None
    ) -> AsyncGenerator[Any, None]:
        tab, (*values, blind) = self._of(request), given
        problem = None
        try:
            async with aclosing(
                ask(
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
            yield [*self._html(self.sessions.now(str(request.session_hash))), *[gr.skip()] * 8]
        else:
            yield [*self._html(tab), gr.skip(), *self._controls(tab)]
        if problem:
            raise problem
        yield [gr.skip()] * 10  # Gradio sends the last state once more, and this may come after Clear's reply.

    def _stop(self, request: gr.Request) -> None:
        self._of(request).stop.set()

    def _edit(self, request: gr.Request) -> list[Any]:
        tab = self._of(request)
        if not tab.turns or tab.busy:
            return [*[gr.skip()] * 3, *self._controls(tab)]
        last = tab.turns.pop()
        return [*self._html(tab), last.question, *self._controls(tab)]

    def _clear(self, request: gr.Request) -> list[Any]:
        self.sessions.close(str(request.session_hash))
        tab = self._of(request)
        return [None, None, *self._html(tab), "", *self._controls(tab)]

    def _vote(self, place: int | str) -> Callable[[gr.Request], list[Any]]:
        def vote(request: gr.Request) -> list[Any]:
            tab = self._of(request)
            try:
                voted = tab.voted(place)
                tab.vote = self.votes.add(voted, tab.digests)
                tab.turns[-1] = voted
            except MmdoraError as error:
                raise gr.Error(str(error), print_exception=False) from None
            return [self._tally(), *self._html(tab), gr.skip(), *self._controls(tab)]

        return vote

    def _undo(self, request: gr.Request) -> list[Any]:
        """Take the last vote back. The names stay shown: a second vote on this turn would not be blind."""
        tab = self._of(request)
        if tab.undoable and tab.vote is not None:
            try:
                self.votes.take_back(tab.turns[-1], tab.vote)
            except MmdoraError as error:
                raise gr.Error(str(error), print_exception=False) from None
            tab.turns[-1], tab.vote = replace(tab.turns[-1], vote=None, blind=False), None
        return [self._tally(), *self._html(tab), gr.skip(), *self._controls(tab)]

    def _choose_pair(self, request: gr.Request, pair: Any) -> tuple[str, str]:
        tab = self._of(request)
        tab.pair = self.pairs.get(pair, tab.pair)
        return self._html(tab)

    def _link(self, request: gr.Request, question: Any, *given: Any) -> str:
        tab, (*values, blind) = self._of(request), given
        asked = tab.turns[0].question if tab.turns else str(question)
        try:
            return results.link(asked, AnswerSettings(*values), self._example(tab), blind=blind is True)
        except MmdoraError as error:
            raise gr.Error(str(error), print_exception=False) from None

    def _open_link(self, request: gr.Request) -> list[Any]:
        query = dict(request.query_params)
        if not query.keys() & {"q", "example", "blind", *results.KEYS}:
            return [gr.skip()] * 8
        try:
            question, settings, example, blind = results.from_link(query, len(self.examples))
        except MmdoraError as error:
            # A gr.Warning would not reach the page from outside of Gradio's queue.
            return [gr.skip(), gr.update(placeholder=str(error)), *[gr.skip()] * 6]
        picture = gr.skip() if example is None else str(self.examples[example][0])
        return [picture, question, *vars(settings).values(), blind]

    def _take(self, form: Callable[..., str]) -> Callable[[gr.Request], str]:
        def take(request: gr.Request) -> str:
            tab = self._of(request)
            known = {"sha256": ", ".join(tab.digests)}
            if (example := self._example(tab)) is not None:
                known = {"example": str(example + 1), **known}
            return form(tab.turns, self.kinds, known)

        return take

    def _example(self, tab: Session) -> int | None:
        """The number of the example that the conversation is about; None if it is about anything else."""
        return self.digests.get(tab.digests[0]) if len(tab.digests) == 1 else None

    def _leave(self, request: gr.Request) -> None:
        self.sessions.close(str(request.session_hash))

    def _of(self, request: gr.Request) -> Session:
        return self.sessions[str(request.session_hash)]

    def _html(self, tab: Session) -> tuple[str, str]:
        """The HTML of the newest turn, and of the turns before it."""
        return self._newest(tab), self._earlier(tab)

    def _newest(self, tab: Session) -> str:
        return conversation_html(tab.turns[-1:], self.kinds, self._pair(tab), len(tab.turns))

    def _earlier(self, tab: Session) -> str:
        return conversation_html(tab.turns[:-1], self.kinds, self._pair(tab))

    def _pair(self, tab: Session) -> tuple[str, str] | None:
        return tab.pair or next(iter(self.pairs.values()), None)

    def _controls(self, tab: Session, *, busy: bool = False) -> list[Any]:
        """Updates for the buttons ask, stop, retry and edit, and for the rows with votes, their undoing and results."""
        busy = busy or tab.busy  # An error of another question must not take away the button that stops this one.
        free = not busy and bool(tab.turns)
        states = [gr.update(interactive=on) for on in (not busy, busy, free, free)]
        rows = (not busy and tab.votable, not busy and tab.undoable, free)
        return [*states, *(gr.update(visible=shown) for shown in rows)]

    def _tally(self) -> str:
        return tally_html(self.votes.tally() or {}, self.votes.counts)

    def _recorded(self) -> str:
        told = "Votes are recorded with question, answers and settings, without addresses."
        return f'<p class="note">{told}</p>' if self.votes.file else ""
