"""The page's widgets and their wiring; what they show comes from `compare` and `session`."""

from __future__ import annotations

import threading
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from typing import Any

import gradio as gr

from mmdora.demo import results, session
from mmdora.demo.cards import NOTE, TITLE, conversation_html, idle_html, tally_html
from mmdora.demo.compare import (
    MAX_QUESTION,
    MAX_TOKENS,
    Answer,
    Column,
    Settings,
    check_question,
    check_upload,
    new_turn,
)
from mmdora.demo.inside import Inside
from mmdora.demo.line import Line
from mmdora.demo.session import Session, Sessions, ask, digest
from mmdora.demo.uploads import Examples, upload_path, uploads_only, within_reach
from mmdora.demo.votes import ALL_BAD, TIE, Votes
from mmdora.errors import MmdoraError

QUEUE = 64  # questions waiting or running; one more is told so at once


class Page:
    """The page for these models; `blocks` is what Gradio serves.

    Args:
        examples: pictures with a question each.
        votes: where votes of blind comparisons go.
        inside: what the second tab shows.
        queue: questions waiting or running at most.
    """

    def __init__(
        self, columns: Sequence[Column], examples: Examples, votes: Votes, inside: Inside, *, queue: int = QUEUE
    ):
        self.columns, self.votes, self.inside = columns, votes, inside
        self.kinds = {column.name: column.kind for column in columns}
        self.examples = within_reach(examples)
        self.digests = {digest(path): number for number, (path, _) in enumerate(self.examples)}
        self.sessions, self.line = Sessions(), Line(queue)
        with gr.Blocks(title="mmdora", analytics_enabled=False) as self.blocks:
            gr.HTML(TITLE, js_on_load=None, elem_classes="page-html")
            with gr.Tab("Compare"):
                self._compare_tab()
            with gr.Tab("Look inside"):
                self._inside_tab()
            self.blocks.unload(self._leave)
        # our own queue tells positions; Gradio's only has to hold as many
        self.blocks.queue(max_size=4 * queue, default_concurrency_limit=None, api_open=False)

    def _compare_tab(self) -> None:
        several = len(self.columns) > 1
        with gr.Row():
            with gr.Column(scale=2, min_width=280):
                image = uploads_only(
                    gr.Image(
                        sources=["upload", "webcam", "clipboard"],
                        type="filepath",
                        label="Picture",
                        height=405,
                        buttons=["fullscreen"],
                        elem_classes="picture",
                        alt_text="The picture that the questions are about",
                    )
                )
            with gr.Column(scale=3, min_width=280):
                question = gr.Textbox(
                    label="Question",
                    placeholder="What do you want to know about the picture? Enter sends, Esc stops.",
                    lines=1,
                    max_lines=4,
                    max_length=MAX_QUESTION,
                )
                with gr.Row(elem_classes="buttons"):
                    send = gr.Button("Ask", variant="primary", min_width=76)
                    stop = gr.Button("Stop", interactive=False, min_width=76, elem_id="stop")
                    retry = gr.Button("Retry", interactive=False, min_width=76)
                    edit = gr.Button("Edit", interactive=False, min_width=76)
                    clear = gr.Button("Clear", min_width=76)
                blind = gr.Checkbox(label="Blind: hide the names until I vote", visible=several)
                settings = _settings()
                if self.examples:
                    rows = [[str(path), text] for path, text in self.examples]
                    with gr.Column(elem_classes="examples"):
                        gr.Examples(rows, inputs=[image, question], api_visibility="private")
        answers = gr.HTML(idle_html(self.kinds), js_on_load=None, elem_classes="page-html")
        with gr.Row(visible=False, elem_classes="buttons") as vote_row:
            ballots = [gr.Button(f"{'ABCD'[i]} is best", min_width=76) for i in range(len(self.columns))]
            ballots += [gr.Button("Tie", min_width=76), gr.Button("All bad", min_width=76)]
        earlier = gr.HTML(js_on_load=None, elem_classes="page-html")
        with gr.Row(visible=False, elem_classes="buttons") as take_row:
            link = gr.Button("Copy link", size="sm", min_width=76, elem_id="link")
            markdown = gr.Button("Markdown", size="sm", min_width=76)
            as_json = gr.Button("JSON", size="sm", min_width=76)
        tally = gr.HTML(self._tally(), js_on_load=None, elem_classes="page-html")
        gr.HTML(NOTE + self._recorded(), js_on_load=None, elem_classes="page-html")
        text = gr.Textbox(visible=False)

        controls = [send, stop, retry, edit, vote_row, take_row]
        quiet: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
        at_once: dict[str, Any] = {"queue": False, **quiet}
        # raw values (preprocess=False): Pillow must not touch an upload before its size is checked
        slow: dict[str, Any] = {"preprocess": False, "concurrency_limit": None, **quiet}
        given, shown = [*settings, blind], [answers, earlier, question, *controls]
        begun = gr.on([question.submit, send.click], self._begin, None, controls, **at_once)
        asked = begun.then(self._ask, [image, question, *given], shown, **slow)
        again = retry.click(self._begin, None, controls, **at_once).then(self._again, given, shown, **slow)
        stop.click(self._stop, None, None, **at_once)
        edit.click(self._edit, None, shown, **at_once)
        # queued as the answers are, so that none of theirs arrives after it
        clear.click(self._clear, None, [image, *shown], cancels=[asked, again], concurrency_limit=None, **quiet)
        for button, place in zip(ballots, [*range(len(self.columns)), TIE, ALL_BAD], strict=True):
            button.click(self._vote(place), None, [tally, *shown], **at_once)
        link.click(self._link, [question, *given], text, **at_once, preprocess=False).then(
            None, text, None, js="(text) => mmdora.copy(text)"
        )
        for button, form, name, kind in (
            (markdown, results.as_markdown, "comparison.md", "text/markdown"),
            (as_json, results.as_json, "comparison.json", "application/json"),
        ):
            button.click(self._take(form), None, text, **at_once).then(
                None, text, None, js=f"(text) => mmdora.save('{name}', '{kind}', text)"
            )
        self.blocks.load(self._open_link, None, [image, question, *given], **at_once)
        gr.Button(visible=False).click(
            self._api,
            [image, question, *settings],
            gr.JSON(visible=False, label="answers"),
            preprocess=False,
            concurrency_limit=None,
            api_name="compare",
        )

    def _inside_tab(self) -> None:
        gr.HTML(self.inside.html(), js_on_load=None, elem_classes="page-html")
        quiet: dict[str, Any] = {"api_visibility": "private", "concurrency_limit": 1, "show_progress": "full"}
        if self.inside.galleries:
            names = list(self.inside.galleries)
            chosen = gr.Dropdown(names, value=None, label="What went wrong: questions that this model answers wrongly")
            chosen.change(self.inside.gallery, chosen, gr.HTML(js_on_load=None, elem_classes="page-html"), **quiet)
        if self.inside.adapters:
            button = gr.Button("Show how far the adapters moved each layer")
            button.click(self.inside.moved, None, gr.HTML(js_on_load=None, elem_classes="page-html"), **quiet)

    def _begin(self, request: gr.Request) -> list[Any]:
        tab = self._of(request)
        if not tab.busy:
            tab.stop = threading.Event()
        return self._controls(tab, busy=True)

    async def _ask(self, request: gr.Request, image: Any, question: Any, *given: Any) -> AsyncGenerator[Any, None]:
        async with aclosing(self._talk(self._of(request), image, question, given)) as states:
            async for state in states:
                yield state

    async def _again(self, request: gr.Request, *given: Any) -> AsyncGenerator[Any, None]:
        tab = self._of(request)
        if tab.turns and tab.picture and not tab.busy:
            *tab.turns, last = tab.turns
            image = {"path": str(tab.picture)}
            async with aclosing(self._talk(tab, image, last.question, given, keep=[*tab.turns, last])) as states:
                async for state in states:
                    yield state
        else:
            yield [gr.skip(), gr.skip(), gr.skip(), *self._controls(tab)]

    async def _talk(
        self, tab: Session, image: Any, question: Any, given: Sequence[Any], keep: Any = None
    ) -> AsyncGenerator[Any, None]:
        *values, blind = given
        problem = None
        try:
            async with aclosing(
                ask(tab, self.columns, self.line, upload_path(image), question, Settings(*values), blind is True)
            ) as steps:
                rest: list[Any] = []  # shown once: what only the newest turn's growth does not change
                async for _ in steps:
                    if tab.closed:
                        break
                    newest, earlier = self._html(tab)
                    yield [newest, *(rest or [earlier, "" if keep is None else gr.skip(), *[gr.skip()] * 6])]
                    rest = [gr.skip()] * 8
        except MmdoraError as error:
            problem = gr.Error(str(error), print_exception=False)
            if keep is not None:
                tab.turns = keep
        if tab.closed:  # an empty last state, since Gradio sends that once more at the end
            yield [gr.skip()] * 9
            return
        yield [*self._html(tab), gr.skip(), *self._controls(tab)]
        if problem:
            raise problem

    async def _api(
        self,
        image: dict[str, Any],
        question: str,
        max_tokens: int,
        temperature: float,
        top_p: float,
        seed: int,
        system_prompt: str,
    ) -> AsyncGenerator[list[dict[str, Any]], None]:
        """Every model's answer to a question about an image.

        Streams a list with one object for each model, again and again while they answer: name,
        status (queued, waiting, running, done, stopped, failed), text, tokens, first_token_s, tokens_per_s,
        error, and while the question is queued its position. The last list has the whole answers.
        """
        try:
            settings = Settings(max_tokens, temperature, top_p, seed, system_prompt)
            picture = upload_path(image)
            turns = [new_turn(self.columns, check_question(question, settings), settings)]
            check_upload(picture)
            steps = self.line.run(
                lambda: session.answers(self.columns, turns, picture),
                lambda position: tuple(Answer(name, "queued", position=position) for name in self.kinds),
            )
            async with aclosing(steps):
                async for states in steps:
                    yield [state.to_dict() for state in states]
        except MmdoraError as error:
            raise gr.Error(str(error), print_exception=False) from None

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
        return [None, *self._html(tab), "", *self._controls(tab)]

    def _vote(self, place: int | str) -> Callable[[gr.Request], list[Any]]:
        def vote(request: gr.Request) -> list[Any]:
            tab = self._of(request)
            try:
                self.votes.add(tab.vote(place), tab.digest)
            except MmdoraError as error:
                raise gr.Error(str(error), print_exception=False) from None
            return [self._tally(), *self._html(tab), gr.skip(), *self._controls(tab)]

        return vote

    def _link(self, request: gr.Request, question: Any, *given: Any) -> str:
        tab, (*values, blind) = self._of(request), given
        asked = tab.turns[0].question if tab.turns else str(question)
        return results.link(asked, Settings(*values), self.digests.get(tab.digest), blind=blind is True)

    def _open_link(self, request: gr.Request) -> list[Any]:
        query = dict(request.query_params)
        if not query.keys() & {"q", "example", "blind", *results.KEYS}:
            return [gr.skip()] * 8
        try:
            question, settings, example, blind = results.from_link(query, len(self.examples))
        except MmdoraError as error:
            gr.Warning(str(error))
            return [gr.skip()] * 8
        picture = gr.skip() if example is None else str(self.examples[example][0])
        return [picture, question, *vars(settings).values(), blind]

    def _take(self, form: Callable[..., str]) -> Callable[[gr.Request], str]:
        def take(request: gr.Request) -> str:
            tab = self._of(request)
            known = {"sha256": tab.digest}
            if (example := self.digests.get(tab.digest)) is not None:
                known = {"example": str(example + 1), **known}
            return form(tab.turns, self.kinds, known)

        return take

    def _leave(self, request: gr.Request) -> None:
        self.sessions.close(str(request.session_hash))

    def _of(self, request: gr.Request) -> Session:
        return self.sessions[str(request.session_hash)]

    def _html(self, tab: Session) -> tuple[str, str]:
        """The newest turn, and those before it."""
        newest, count = tab.turns[-1:], len(tab.turns)
        return conversation_html(newest, self.kinds, count), conversation_html(tab.turns[:-1], self.kinds)

    def _controls(self, tab: Session, *, busy: bool = False) -> list[Any]:
        """Updates of ask, stop, retry, edit, and the rows for votes and for results."""
        free = not busy and bool(tab.turns)
        states = [gr.update(interactive=on) for on in (not busy, busy, free, free)]
        return [*states, gr.update(visible=not busy and tab.votable), gr.update(visible=free)]

    def _tally(self) -> str:
        return tally_html(self.votes.tally() or {}, self.votes.counts)

    def _recorded(self) -> str:
        told = "Votes are recorded with question, answers and settings, without addresses."
        return f'<p class="note">{told}</p>' if self.votes.file else ""


def _settings() -> list[Any]:
    default = Settings()
    with gr.Accordion("Settings", open=False):
        with gr.Row():
            tokens = gr.Slider(1, MAX_TOKENS, default.max_tokens, step=1, label="Max tokens", min_width=200)
            temperature = gr.Slider(
                0, 2, default.temperature, step=0.05, label="Temperature (0: greedy)", min_width=200
            )
        with gr.Row():
            top_p = gr.Slider(0.05, 1, default.top_p, step=0.05, label="Top-p", min_width=200)
            seed = gr.Number(
                default.seed, precision=0, minimum=0, label="Seed (the same for every model)", min_width=200
            )
        system = gr.Textbox(default.system_prompt, label="System prompt", lines=1, max_lines=4, max_length=MAX_QUESTION)
    return [tokens, temperature, top_p, seed, system]
