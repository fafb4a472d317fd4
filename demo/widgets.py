"""Lays out the widgets of the tab "Compare"; `app` handles their events."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import gradio as gr

from mmdora.demo.cards import NOTE, examples_html, idle_html
from mmdora.demo.turns import MAX_QUESTION, MAX_STRENGTH, MAX_TOKENS, AnswerSettings
from mmdora.demo.uploads import Examples, uploads_only

CHOSEN = """element.addEventListener("click", (event) => {
  const tile = event.target.closest("[data-example]");
  if (tile) trigger("click", { example: tile.dataset.example });
});"""
SMALL: dict[str, Any] = {"min_width": 76}


class Compare:
    """The widgets of the tab, which are made inside the `gr.Blocks` that is open.

    Args:
        kinds: name of each model -> a line that describes the model.
        pairs: names of the pairs of models between which words can be marked, the default first.
        examples: pictures, as files, with a question each.
        tally: HTML with the votes so far, shown below the answers.
        note: HTML shown at the end.
        pictures: whether any of the models reads pictures.
        scales: whether the strength of an adapter can be set.
    """

    def __init__(
        self,
        kinds: Mapping[str, str],
        pairs: Sequence[str],
        examples: Examples,
        *,
        tally: str,
        note: str,
        pictures: bool = True,
        scales: bool = False,
    ):
        self.scales = scales
        with gr.Row(elem_classes="asking"):
            with gr.Column(scale=2, min_width=280, visible=pictures):
                self.image = _picture("Picture", 405, "The picture that the questions are about")
                with gr.Accordion("Second picture, for questions about two", open=False) as self.more:
                    self.second = _picture("Second picture", 260, "The second picture that the questions are about")
            with gr.Column(scale=3, min_width=280):
                self._questions(len(kinds), examples, " about the picture" if pictures else "")
        self.answers = _html(idle_html(kinds))
        with gr.Row(visible=False, elem_classes="buttons") as self.vote_row:
            self.ballots = [gr.Button(f"{'ABCD'[i]} is best", **SMALL) for i in range(len(kinds))]
            self.ballots += [gr.Button("Tie", **SMALL), gr.Button("All bad", **SMALL)]
        with gr.Row(visible=False, elem_classes="buttons") as self.undo_row:
            self.undo = gr.Button("Take the vote back", size="sm", **SMALL)
        self.earlier = _html()
        with gr.Row(visible=False, elem_classes="buttons") as self.take_row:
            self.link = gr.Button("Copy link", size="sm", elem_id="link", **SMALL)
            self.markdown = gr.Button("Markdown", size="sm", **SMALL)
            self.json = gr.Button("JSON", size="sm", **SMALL)
        self.pair = gr.Dropdown(
            list(pairs),
            value=next(iter(pairs), None),
            label="Mark words that differ between",
            visible=len(pairs) > 1,
            elem_classes="pair",
        )
        self.tally = _html(tally)
        self.list = gr.HTML("", js_on_load=None, elem_classes="page-html conversations")
        _html(NOTE + note)
        self.text, self.secret, self.name = (gr.Textbox(visible=False) for _ in range(3))

    def _questions(self, columns: int, examples: Examples, about: str) -> None:
        self.question = gr.Textbox(
            label="Question",
            placeholder=f"What do you want to know{about}? Enter sends, Esc stops.",
            lines=1,
            max_lines=4,
            max_length=MAX_QUESTION,
        )
        with gr.Row(elem_classes="buttons"):
            self.send = gr.Button("Ask", variant="primary", **SMALL)
            self.stop = gr.Button("Stop", interactive=False, elem_id="stop", **SMALL)
            self.retry = gr.Button("Retry", interactive=False, **SMALL)
            self.edit = gr.Button("Edit", interactive=False, **SMALL)
            self.clear = gr.Button("Clear", **SMALL)
        self.blind = gr.Checkbox(label="Blind: hide the names until I vote", visible=columns > 1)
        with gr.Accordion("Settings", open=False) as self.fold:
            self.settings = _settings()
            self.strength = gr.Slider(
                0,
                MAX_STRENGTH,
                1,
                step=0.05,
                label="How much adapter? (0: the base, 1: as trained)",
                info="Scales each adapter's change: B A by this factor, and DoRA's magnitude on the way from the "
                "base's norms to the trained ones. Nothing is trained or merged anew.",
                visible=self.scales,
            )
        self.examples = gr.HTML(examples_html(examples), js_on_load=CHOSEN, elem_classes="page-html examples")


def _picture(label: str, height: int, alt_text: str) -> gr.Image:
    return uploads_only(
        gr.Image(
            sources=["upload", "webcam", "clipboard"],
            type="filepath",
            label=label,
            height=height,
            buttons=["fullscreen"],
            elem_classes="picture",
            alt_text=alt_text,
        )
    )


def _html(value: str = "") -> gr.HTML:
    return gr.HTML(value, js_on_load=None, elem_classes="page-html")


def _settings() -> list[Any]:
    default = AnswerSettings()
    with gr.Row():
        tokens = gr.Slider(1, MAX_TOKENS, default.max_tokens, step=1, label="Max tokens", min_width=200)
        temperature = gr.Slider(0, 2, default.temperature, step=0.05, label="Temperature (0: greedy)", min_width=200)
    with gr.Row():
        top_p = gr.Slider(0.05, 1, default.top_p, step=0.05, label="Top-p", min_width=200)
        seed = gr.Number(default.seed, precision=0, minimum=0, label="Seed (the same for every model)", min_width=200)
    system = gr.Textbox(default.system_prompt, label="System prompt", lines=1, max_lines=4, max_length=MAX_QUESTION)
    return [tokens, temperature, top_p, seed, system]
