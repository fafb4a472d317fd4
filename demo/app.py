"""Puts the page together. `widgets` lays it out, `talk`, `sharing` and `many_tab` answer its events."""

from __future__ import annotations

import shutil
import tempfile
import weakref
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import gradio as gr

from mmdora.demo import results
from mmdora.demo.api import compare_api
from mmdora.demo.cards import title_html
from mmdora.demo.inside import Inside
from mmdora.demo.inside_tab import inside_tab
from mmdora.demo.kept import Kept
from mmdora.demo.line import Line
from mmdora.demo.many_tab import ManyTab
from mmdora.demo.question_sets import Known, QuestionSet
from mmdora.demo.sharing import KEPT, Sharing
from mmdora.demo.talk import Talk
from mmdora.demo.turns import ALL_BAD, TIE, ModelColumn
from mmdora.demo.uploads import Examples, received, within_reach
from mmdora.demo.votes import Votes
from mmdora.demo.widgets import Compare

QUEUE = 64  # Most questions that wait or are answered. Whoever asks one more is told at once that the page is busy.


class Page:
    """The page for some models. Gradio serves its attribute `blocks`.

    Args:
        columns: models to compare.
        examples: pictures with a question each; they are left out if no model reads pictures.
        votes: counts and keeps the votes of blind comparisons.
        inside: content of the last tab.
        queue: most questions that wait or are answered.
        sets: sets of questions for the second tab.
        sessions: folder in which conversations are kept beyond the page's life, and listed to their visitors.
    """

    def __init__(
        self,
        columns: Sequence[ModelColumn],
        examples: Examples,
        votes: Votes,
        inside: Inside,
        *,
        queue: int = QUEUE,
        sets: Sequence[QuestionSet] = (),
        sessions: Path | None = None,
    ):
        self.columns, self.votes = columns, votes
        self.sees = any(column.sees for column in columns)
        self.kinds = {column.name: column.kind for column in columns}
        # The base is usually named first and the adapters after it, so their pair comes first here.
        names = list(self.kinds)[::-1]
        self.pairs = {f"{b} and {a}": (b, a) for a, b in combinations(names, 2)}
        self.examples = within_reach(examples if self.sees else ())
        self.line = Line(queue)
        self.talk = Talk(columns, self.line, votes, self.pairs)
        folder = sessions or Path(tempfile.mkdtemp(prefix="mmdora-kept-"))
        if sessions is None:
            weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
        kept, listed = Kept(folder, list(self.kinds)), sessions is not None
        self.sharing = Sharing(self.kinds, self.examples, kept, listed=listed, session_of=self.talk.of)
        with gr.Blocks(title="mmdora", analytics_enabled=False) as self.blocks:
            gr.HTML(title_html(pictures=self.sees), js_on_load=None, elem_classes="page-html")
            with gr.Tabs() as tabs:
                with gr.Tab("Compare", id="compare"):
                    w = self._compare_tab()
                with gr.Tab("Many questions"):
                    self.many = ManyTab(columns, self.line, sets)
                    compare = [w.image, w.second, w.question, tabs]
                    self.many.opens(compare)
                inside_tab(inside, Known(sets), compare)
            self.blocks.unload(self._leave)
        # Our own queue tells people their positions. Gradio's queue only has to be large enough.
        self.blocks.queue(max_size=4 * queue, default_concurrency_limit=None, api_open=False)

    def _compare_tab(self) -> Compare:
        w = Compare(
            self.kinds,
            list(self.pairs),
            self.examples,
            tally=self.talk.tally(),
            note=self._recorded(),
            pictures=self.sees,
            scales=any(column.scales for column in self.columns),
        )
        pictures = [w.image, w.second]
        controls = [w.send, w.stop, w.retry, w.edit, w.vote_row, w.undo_row, w.take_row]
        quiet: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
        at_once: dict[str, Any] = {"queue": False, **quiet}
        # preprocess=False gives raw values: Pillow must not touch an upload before its size is checked.
        # "multiple" lets the next question after Clear begin before the last one has ended.
        slow: dict[str, Any] = {"preprocess": False, "concurrency_limit": None, "trigger_mode": "multiple", **quiet}
        given, shown = [*w.settings, w.strength, w.blind], [w.answers, w.earlier, w.question, *controls]
        folded = [*controls, w.fold, w.more]
        begun = gr.on([w.question.submit, w.send.click], self.talk.begin, None, folded, **at_once)
        begun.then(None, None, None, js="() => mmdora.show()", **at_once)
        asked = begun.then(self.talk.ask, [*pictures, w.question, *given], shown, **slow)
        again = w.retry.click(self.talk.begin, None, folded, **at_once).then(self.talk.again, given, shown, **slow)
        w.stop.click(self.talk.stop, None, None, **at_once)
        edited = w.edit.click(self.talk.edit, None, shown, **at_once)
        # These events neither queue nor cancel: when a cancelled event's stream ends, Gradio can lose a queued reply.
        for picture in pictures:
            picture.upload(received, picture, picture, preprocess=False, concurrency_limit=None, **quiet)
        w.examples.click(self._example_chosen, None, [w.image, w.question], **at_once)
        w.clear.click(self.talk.clear, None, [*pictures, *shown], **at_once)
        changes = [asked.then, again.then, edited.then, w.image.change, w.second.change, w.blind.input]
        changes += [own.release if isinstance(own, gr.Slider) else own.blur for own in (*w.settings, w.strength)]
        for button, place in zip(w.ballots, [*range(len(self.columns)), TIE, ALL_BAD], strict=True):
            changes.append(
                button.click(self.talk.vote(place), None, [w.tally, *shown], concurrency_limit=None, **quiet).then
            )
        w.undo.click(self.talk.undo, None, [w.tally, *shown], concurrency_limit=None, **quiet)
        w.pair.change(self.talk.choose_pair, w.pair, [w.answers, w.earlier], **at_once)
        w.link.click(self.sharing.link, [w.question, *given], w.text, **slow).success(
            None, w.text, None, js="(text) => mmdora.copy(text)"
        )
        for button, form, name, kind in (
            (w.markdown, results.as_markdown, "comparison.md", "text/markdown"),
            (w.json, results.as_json, "comparison.json", "application/json"),
        ):
            button.click(self.sharing.take(form), None, w.text, **at_once).then(
                None, w.text, None, js=f"(text) => mmdora.save('{name}', '{kind}', text)"
            )
        self._keep(w, [w.answers, w.earlier, *controls], changes)
        gr.Button(visible=False).click(
            compare_api(self.columns, self.line),
            [w.image, w.question, *w.settings, w.second],
            gr.JSON(visible=False, label="answers"),
            preprocess=False,
            concurrency_limit=None,
            api_name="compare",
        )
        return w

    def _keep(self, w: Compare, shown: list[Any], changes: list[Any]) -> None:
        """Keep what the visitor has on the page after each change, and show it again when the page is loaded.

        Args:
            shown: the widgets of the conversation and its controls.
            changes: the events after which to keep it.
        """
        quiet: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden", "queue": False}
        pictures, given = [w.image, w.second], [*w.settings, w.strength, w.blind]
        for change in changes:
            change(self.sharing.save, [w.secret, *pictures, *given], [w.name, w.list], preprocess=False, **quiet)
        w.name.change(None, w.name, None, js="(name) => mmdora.keep(name)", **quiet)
        # The tally is that of now, and not that of the time at which the page was built.
        loaded = [w.secret, *pictures, w.question, *given, *shown, w.tally, w.list]
        self.blocks.load(self._opened, [w.secret, w.name], loaded, js=KEPT, **quiet)

    def _example_chosen(self, event: gr.EventData) -> list[Any]:
        number = event._data.get("example") if isinstance(event._data, dict) else None
        chosen = dict(enumerate(self.examples, 1)).get(int(number) if str(number) in map(str, range(1, 100)) else 0)
        return [gr.skip(), gr.skip()] if chosen is None else [str(chosen[0]), chosen[1]]

    def _opened(self, request: gr.Request, secret: Any, before: Any) -> list[Any]:
        """The page as it is loaded: from a link, or as it was before the reload."""
        values, problem, earlier = self.sharing.opened(request, secret, before)
        tab = self.talk.of(request)
        if problem:  # A gr.Warning would not reach the page from outside of Gradio's queue.
            values[2] = gr.update(placeholder=problem)
        kept = secret if isinstance(secret, str) else ""
        return [kept, *values, *self.talk.html(tab), *self.talk.controls(tab), self.talk.tally(), earlier]

    def _leave(self, request: gr.Request) -> None:
        self.talk.sessions.close(str(request.session_hash))
        self.many.leave(request)

    def _recorded(self) -> str:
        told = "Votes are recorded with question, answers and settings, without addresses."
        return f'<p class="note">{told}</p>' if self.votes.file else ""
