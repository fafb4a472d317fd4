"""The tab "Many questions": its widgets, and what happens on them."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

import gradio as gr

from mmdora.demo import many_html
from mmdora.demo.line import Line
from mmdora.demo.many import MOST, Round
from mmdora.demo.question_sets import QuestionSet
from mmdora.demo.session import Sessions
from mmdora.demo.turns import ModelColumn
from mmdora.demo.uploaded_set import TABLES, read_upload
from mmdora.demo.uploads import keep_pictures, upload_path, uploads_only, without_paths
from mmdora.errors import MmdoraError
from mmdora.evaluate.scoring.metrics import question_text
from mmdora.evaluate.tasks import Task
from mmdora.records.row import Row, videos_of

OWN = "your own questions"
CLICKED = """element.addEventListener("click", (event) => {
  const row = event.target.closest("[data-row]");
  if (row && !String(getSelection())) trigger("click", { row: row.dataset.row });
});"""
BUSY_WAIT = 1.0  # Seconds until a round tries again to enter a queue that is full.


@dataclass
class Asking:
    """The round of one browser tab.

    Attributes:
        round: the last round; None before the first.
        stop: ends it after the current token when it is set.
        busy: whether it is being answered.
    """

    round: Round | None = None
    stop: threading.Event = field(default_factory=threading.Event)
    busy: bool = False
    closed: bool = False

    def close(self) -> None:
        self.closed = True
        self.stop.set()


class ManyTab:
    """Makes the tab inside the `gr.Blocks` that is open, and handles its events.

    Args:
        columns: the models.
        line: the queue that the questions of all visitors wait in.
        sets: the sets to choose from, the default first.
    """

    def __init__(self, columns: Sequence[ModelColumn], line: Line, sets: Sequence[QuestionSet]):
        self.columns, self.line, self.rounds = columns, line, Sessions(Asking)
        self.sets = {chosen.name: chosen for chosen in sets}
        self._widgets([column.name for column in columns])
        self._events()

    def _widgets(self, names: list[str]) -> None:
        sizes = [len(chosen.rows) for chosen in self.sets.values()]
        self.tasks = {name: f"{name} ({size:,} questions)" for name, size in zip(self.sets, sizes, strict=True)}
        with gr.Row():
            with gr.Column(scale=3, min_width=280):
                self.chosen = gr.Radio(
                    [(label, name) for name, label in self.tasks.items()] + [(OWN, OWN)],
                    value=next(iter(self.sets), OWN),
                    label="Questions",
                )
                self.count = gr.Slider(1, MOST, min(50, MOST), step=1, label="How many, drawn at random")
                self.seed = gr.Number(0, precision=0, minimum=0, maximum=2**32, label="Seed of the draw")
            with gr.Column(scale=2, min_width=280):
                self.file = uploads_only(
                    gr.File(
                        file_types=[".zip", *TABLES],
                        label="Your own: a ZIP of a table (CSV or JSONL: image, question, answer) and its pictures",
                        height=180,
                        elem_classes="set-file",
                    )
                )
        with gr.Row(elem_classes="buttons"):
            self.run = gr.Button("Ask all", variant="primary", min_width=76)
            self.stop = gr.Button("Stop asking", interactive=False, min_width=76)
        self.progress, self.scores = _html(), _html()
        with gr.Row(visible=False, elem_classes="buttons") as self.after:
            filters = many_html.choices(names)
            self.filter = gr.Dropdown(filters, value=many_html.ALL, label="Show", min_width=200, scale=2)
            self.csv = gr.Button("Download CSV", size="sm", min_width=76)
            self.json = gr.Button("Download JSON", size="sm", min_width=76)
        self.table = gr.HTML("", js_on_load=CLICKED, elem_classes="page-html")
        self.text = gr.Textbox(visible=False)

    def _events(self) -> None:
        quiet: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
        at_once: dict[str, Any] = {"queue": False, **quiet}
        shown = [self.progress, self.scores, self.after, self.filter, self.table, self.run, self.stop]
        asked = self.run.click(self._begin, None, [self.run, self.stop], **at_once)
        given = [self.chosen, self.count, self.seed, self.file]
        asked.then(self._ask, given, shown, preprocess=False, concurrency_limit=None, **quiet)
        self.stop.click(self._stop, None, None, **at_once)
        self.file.upload(self._check, self.file, [self.chosen, self.file], preprocess=False, **quiet)
        self.filter.change(None, self.filter, None, js="(value) => mmdora.filter(value)", **at_once)
        for button, form, name, kind in (
            (self.csv, many_html.as_csv, "questions.csv", "text/csv"),
            (self.json, many_html.as_json, "questions.json", "application/json"),
        ):
            button.click(self._take(form), None, self.text, **at_once).then(
                None, self.text, None, js=f"(text) => mmdora.save('{name}', '{kind}', text)"
            )

    def opens(self, outputs: list[Any]) -> None:
        """Open a question of the table elsewhere, when it is clicked.

        Args:
            outputs: the widgets for the first picture, the second picture and the question, and the tabs.
        """
        self.table.click(self._open, None, outputs, queue=False, api_visibility="private", show_progress="hidden")

    def _begin(self, request: gr.Request) -> list[Any]:
        tab = self._of(request)
        if not tab.busy:
            tab.stop = threading.Event()
        return [gr.update(interactive=False), gr.update(interactive=True)]

    def _stop(self, request: gr.Request) -> None:
        self._of(request).stop.set()

    def leave(self, request: gr.Request) -> None:
        """Stop what a browser tab that was closed had asked."""
        self.rounds.close(str(request.session_hash))

    def _of(self, request: gr.Request) -> Asking:
        return self.rounds[str(request.session_hash)]

    async def _check(self, file: Any) -> list[Any]:
        """Tell at once what is wrong with an upload, and choose it if nothing is."""
        try:
            await asyncio.to_thread(read_upload, upload_path(file))
        except MmdoraError as error:
            gr.Warning(without_paths(str(error)))
            return [gr.skip(), None]
        return [OWN, gr.skip()]

    async def _ask(
        self, request: gr.Request, chosen: Any, count: Any, seed: Any, file: Any
    ) -> AsyncGenerator[list[Any], None]:
        tab, ended = self._of(request), [gr.update(interactive=True), gr.update(interactive=False)]
        keep = [gr.skip()] * 5
        if tab.busy:
            yield [*keep, *[gr.skip()] * 2]
            raise gr.Error("This tab's questions are still being answered; stop them first.", print_exception=False)
        tab.busy = True
        try:
            tab.round = asked = await asyncio.to_thread(self._round, chosen, count, seed, file)
            yield [many_html.progress_html(0, len(asked.rows), None), "", gr.update(visible=False), many_html.ALL, "",
                   *[gr.skip()] * 2]  # fmt: skip
            async with aclosing(self._steps(asked, tab.stop)) as steps:
                async for waiting in steps:
                    if tab.closed:
                        return
                    told = many_html.progress_html(asked.done, len(asked.rows), asked.left_s, waiting)
                    yield [told, *[gr.skip()] * 6]
            scores, table = await asyncio.to_thread(lambda: (many_html.scores_html(asked), many_html.table_html(asked)))
            told = many_html.progress_html(asked.done, len(asked.rows), None)
            yield [told, scores, gr.update(visible=asked.done > 0), gr.skip(), table, *ended]
        except MmdoraError as error:
            yield [*keep, *ended]
            raise gr.Error(without_paths(str(error)), print_exception=False) from None
        finally:
            tab.busy = False

    def _round(self, chosen: Any, count: Any, seed: Any, file: Any) -> Round:
        if chosen == OWN:
            if file is None:
                raise MmdoraError("Upload a ZIP or a table first.")
            questions = read_upload(upload_path(file))
            count = len(questions.rows)
        elif chosen in self.sets:
            questions = self.sets[chosen]
        else:
            raise MmdoraError("There is no such set of questions.")
        for name, value in (("How many", count), ("Seed", seed)):
            if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= 2**32:
                raise MmdoraError(f"{name}: expected a whole number, found {value!r:.40}")
        return Round.of(questions, self.columns, max(count, 1), seed)

    async def _steps(self, asked: Round, stop: threading.Event) -> AsyncGenerator[int, None]:
        """Yield the position in the queue, 0 while answering, until the round is over. Each step waits its turn anew.

        So a visitor with one question waits for a few questions of a set, and not for all of them.
        """
        first = True
        while not (asked.finished or stop.is_set()):
            if len(self.line) >= self.line.capacity and not first:
                await asyncio.sleep(BUSY_WAIT)
                yield self.line.capacity
                continue
            first = False
            steps = self.line.run(lambda: _zeros(asked, stop), lambda position: position, stop)
            async with aclosing(steps):
                async for position in steps:
                    yield position

    def _open(self, request: gr.Request, event: gr.EventData) -> list[Any]:
        asked, place = self._of(request).round, clicked_row(event)
        if asked is None or not place.isascii() or not place.isdigit() or len(place) > 6 or int(place) >= asked.done:
            return [gr.skip()] * 4
        return shown_in_compare(asked.task, asked.rows[int(place)])

    def _take(self, form: Callable[[Round], str]) -> Callable[[gr.Request], str]:
        def take(request: gr.Request) -> str:
            asked = self._of(request).round
            return "" if asked is None else form(asked)

        return take


def clicked_row(event: gr.EventData) -> str:
    """What `CLICKED` told of the line that was clicked; empty if a browser sends something else."""
    return str(event._data.get("row", "")) if isinstance(event._data, dict) else ""


def shown_in_compare(task: Task, row: Row) -> list[Any]:
    """Values of the tab Compare that show a row: first picture, second picture, question, and the tabs.

    Raises:
        gr.Error: a picture cannot be used, or the question is about a video.
    """
    try:
        if videos_of(row):
            raise MmdoraError("This question is about a video, and Compare shows pictures only.")
        first, second, *_ = (*keep_pictures(row["images"]), None, None)
    except MmdoraError as error:
        raise gr.Error(without_paths(str(error)), print_exception=False) from None
    return [first, second, task.ask(row, question_text(row)), gr.Tabs(selected="compare")]


def _zeros(asked: Round, stop: threading.Event) -> Any:
    for _ in asked.step(stop):
        yield 0


def _html(value: str = "") -> gr.HTML:
    return gr.HTML(value, js_on_load=None, elem_classes="page-html")
