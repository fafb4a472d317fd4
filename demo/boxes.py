"""Draws the boxes in an answer on the picture that it is about. Without Gradio."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path

from mmdora.demo.pictures import read_image
from mmdora.demo.turns import Answer
from mmdora.errors import MmdoraError
from mmdora.evaluate.gallery import COLOURS, with_boxes
from mmdora.html import data_uri
from mmdora.records.boxes import Box, Size

SIDE = 420
"""Pixels of the longer side of a picture with boxes: the width of an answer's card on a wide screen."""


def boxes_html(finders: Mapping[str, Callable[[str, Size], list[Box]]], picture: Path | None, answer: Answer) -> str:
    """The picture with the boxes that an answer names, as HTML; empty if it names none.

    Args:
        finders: name of each model -> function that finds boxes in its answers.
        picture: the first picture of the conversation; None without one.
    """
    find = finders.get(answer.name)
    if picture is None or find is None or not answer.text:
        return ""
    try:
        boxes = find(answer.text, _size(picture))
        if not boxes:
            return ""
        count = f"{len(boxes)} box{'es' * (len(boxes) > 1)}"
        return f'<img class="boxed" alt="The picture with {count} of the answer" src="{_drawn(picture, tuple(boxes))}">'
    except MmdoraError:  # The picture is no longer on the server; the answer's text is shown all the same.
        return ""


@lru_cache(maxsize=256)
def _size(picture: Path) -> Size:
    return read_image(picture).size


@lru_cache(maxsize=64)  # Every question draws the earlier turns again.
def _drawn(picture: Path, boxes: tuple[Box, ...]) -> str:
    content = io.BytesIO()
    # Without subsampling the thin lines keep their colour.
    with_boxes(read_image(picture), [(COLOURS[1], "", boxes)], SIDE).save(content, "JPEG", quality=85, subsampling=0)
    return data_uri(content.getvalue(), "image/jpeg")
