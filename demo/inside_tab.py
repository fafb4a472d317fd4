"""Lays out the tab "Look inside": a view of all models of the page, and a view of every two of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gradio as gr

from mmdora.demo.inside import Inside
from mmdora.demo.many_tab import CLICKED, clicked_row, shown_in_compare
from mmdora.demo.question_sets import Known
from mmdora.demo.uploads import without_paths
from mmdora.errors import MmdoraError

QUIET: dict[str, Any] = {"api_visibility": "private", "concurrency_limit": 1, "show_progress": "full"}
AT_ONCE: dict[str, Any] = {"api_visibility": "private", "queue": False, "show_progress": "hidden"}


def inside_tab(inside: Inside, known: Known, compare: list[Any]) -> None:
    """Make the tab inside the `gr.Blocks` that is open. With fewer than two pairs of models there is only one view.

    Args:
        known: finds the pictures of the questions on which two models differ.
        compare: the widgets in which such a question opens, as for `shown_in_compare`.
    """
    with gr.Tab("Look inside") as tab:
        pairs = inside.pairs()
        if len(pairs) < 2:
            _view(inside, tab, known, compare)
            return
        with gr.Tabs():
            with gr.Tab("All"):
                _view(inside, None, known, compare)
            for title, pair in pairs:
                with gr.Tab(title) as tab:
                    _view(pair, tab, known, compare)


def _view(inside: Inside, tab: gr.Tab | None, known: Known, compare: list[Any]) -> None:
    """Lay out one view: cheap parts are shown at once, differences when their tab is opened, others on request."""
    _html(inside.html())
    if tab is not None and any(len(folders) > 1 for folders in inside.scores.values()):
        table = gr.HTML("", js_on_load=CLICKED, elem_classes="page-html")
        tab.select(told(lambda: inside.differences(known)), None, table, **QUIET)
        table.click(_opener(known), None, compare, **AT_ONCE)
    if inside.galleries:
        names = list(inside.galleries)
        chosen = gr.Dropdown(names, value=None, label="What went wrong: wrong answers with their pictures")
        chosen.change(told(inside.gallery), chosen, _html(), **QUIET)
    if inside.adapters:
        button = gr.Button("Show how far the adapters moved each layer")
        button.click(told(inside.moved), None, _html(), **QUIET)


def _opener(known: Known) -> Callable[[gr.EventData], list[Any]]:
    def opened(event: gr.EventData) -> list[Any]:
        found = known.row(clicked_row(event))
        return [gr.skip()] * 4 if found is None else shown_in_compare(*found)

    return opened


def _html(value: str = "") -> gr.HTML:
    return gr.HTML(value, js_on_load=None, elem_classes="page-html")


def told(show: Callable[..., str]) -> Callable[..., str]:
    """Wrap `show` so that its errors become a message on the page."""

    def shown(*given: Any) -> str:
        try:
            return show(*given)
        except MmdoraError as error:
            raise gr.Error(without_paths(str(error)), print_exception=False) from None

    return shown
