"""Boxes of an answer, drawn on the picture of the page."""

from __future__ import annotations

import base64
import io
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import processors
import pytest
from PIL import Image

from mmdora.demo.boxes import SIDE, boxes_html
from mmdora.demo.cards import conversation_html
from mmdora.demo.turns import Answer, AnswerSettings, Turn
from mmdora.families.boxes import BoxRule

QUARTER = (0.5, 0.5, 1.0, 1.0)


def drawn(html: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(html.partition("base64,")[2].partition('"')[0]))).convert("RGB")


def is_red(picture: Image.Image, x: float, y: float) -> bool:
    """Whether a red line passes within two pixels of a place, given as shares of the picture."""
    near = np.asarray(picture)[max(round(y * picture.height) - 2, 0) :, max(round(x * picture.width) - 2, 0) :][:4, :4]
    return bool(((near[..., 0] > 150) & (near[..., 1] < 90) & (near[..., 2] < 130)).any())


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: processors.qwen("Qwen3VL"), "It is at [500, 500, 1000, 1000]."),
        (lambda: processors.qwen("Qwen2VL"), "<|box_start|>(500,500),(1000,1000)<|box_end|>"),
        (processors.internvl, "<box>[[500, 500, 1000, 1000]]</box>"),
        (processors.paligemma, "<loc0512><loc0512><loc1023><loc1023> cat"),
        (lambda: processors.qwen("Qwen2_5_VL", size={"shortest_edge": 64, "longest_edge": 2048}), None),
    ],
)
def test_a_box_is_drawn_where_the_family_means_it(make, text, tmp_path: Path) -> None:
    Image.new("RGB", (800, 480), "white").save(tmp_path / "a.png")
    processor = make()
    if text is None:  # Pixels of the picture as the model sees it, which is smaller.
        grid = processor.image_processor(Image.new("RGB", (800, 480)))["image_grid_thw"][0]
        height, width = (int(side) * processor.image_processor.patch_size for side in grid[1:])
        assert width < 100
        text = f"[{width // 2}, {height // 2}, {width}, {height}]"
    html = boxes_html({"m": BoxRule(processor).in_answer}, tmp_path / "a.png", Answer("m", "done", text))
    assert "with 1 box of the answer" in html
    picture = drawn(html)
    assert picture.size == (SIDE, SIDE * 480 // 800)
    assert all(is_red(picture, *point) for point in ((0.5, 0.75), (0.75, 0.5), (1, 0.75), (0.75, 1)))
    assert not any(is_red(picture, *point) for point in ((0.25, 0.5), (0.75, 0.75), (0.5, 0.25), (0, 0)))


@pytest.mark.parametrize("text", ["yes", "", "[1, 2]", "[-500, 0, 100, 100]", "[500, 500, 9000, 600]", "[5, 5, 5, 5]"])
def test_nothing_is_drawn_without_a_box(text: str, tmp_path: Path) -> None:
    Image.new("RGB", (80, 48)).save(tmp_path / "a.png")
    find = {"m": BoxRule(processors.qwen("Qwen3VL")).in_answer}
    assert boxes_html(find, tmp_path / "a.png", Answer("m", "done", text)) == ""


def test_nothing_is_drawn_without_a_picture_or_a_way_to_write_boxes(tmp_path: Path) -> None:
    Image.new("RGB", (80, 48)).save(tmp_path / "a.png")
    answer = Answer("m", "done", "[100, 100, 500, 500]")
    qwen, gemma = (BoxRule(make()).in_answer for make in (lambda: processors.qwen("Qwen3VL"), processors.gemma3))
    assert boxes_html({"m": qwen}, tmp_path / "a.png", answer)
    assert boxes_html({"m": qwen}, None, answer) == boxes_html({"m": qwen}, tmp_path / "gone.png", answer) == ""
    assert boxes_html({"m": gemma}, tmp_path / "a.png", answer) == boxes_html({}, tmp_path / "a.png", answer) == ""


def test_the_page_shows_boxes_below_their_own_answer_once_it_has_ended() -> None:
    answers = Answer("a", "done", "It is here."), Answer("b", "running", "It is there.")
    turn = Turn("?", AnswerSettings(), answers, (1, 0), blind=True)
    show = partial(
        conversation_html, kinds=dict.fromkeys("ab", ""), pair=None, draw=lambda answer: f"<i>{answer.name}</i>"
    )
    assert "<i>" not in show([turn])
    page = show([replace(turn, answers=(answers[0], replace(answers[1], status="done")))])
    assert page.index("is there") < page.index("<i>b</i>") < page.index("is here") < page.index("<i>a</i>")
