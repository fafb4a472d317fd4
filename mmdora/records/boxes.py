"""Boxes in texts: `<box>x1, y1, x2, y2</box>` in a question or an answer, left, top, right and bottom of a thing.

What the numbers are is declared: pixels of the picture as it is shown (after its EXIF orientation), or shares of its
width and height from 0 to 1. A record says so in `meta.boxes_in`, a run in `data.boxes.from`. Without either, these
marks are text like any other. A box belongs to the last picture before it in its conversation, or else to the first.

This module imports no torch, because scorers read boxes too.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from mmdora.errors import MmdoraError
from mmdora.records.images import FileRef, image_size
from mmdora.records.row import Row, changed

Box = tuple[float, float, float, float]
"""Left, top, right and bottom."""
Size = tuple[int, int]
"""Width and height in pixels."""

FORMS = ("pixels", "relative")
WRITTEN = "boxes_as"
"""The key of `meta` that names the way in which a row's boxes were written, once they are."""
MARK = re.compile(r"<box>([^<>\[\]()]*)</box>")
"""A declared box. InternVL's own `<box>[[…]]</box>` is none: that is how its family writes one."""
_NUMBER = r"\s*(-?\d+(?:\.\d+)?)\s*"
_FOUR = re.compile(rf"[\[(]{_NUMBER},{_NUMBER}(?:\)\s*,\s*\(|,){_NUMBER},{_NUMBER}[\])]")
_PLACES = re.compile(r"<loc(\d{4})>" * 4)
_OUTSIDE = 1.0
"""Pixels that a box may reach over the edge of its picture; annotations are rounded."""


def form_of(row: Row, declared: str | None = None) -> str | None:
    """What the numbers of a row's boxes are: what it says itself, or else what was declared for all; None if nothing,
    or if they are written already.

    Raises:
        MmdoraError: it says something else than "pixels" or "relative".
    """
    form = None if WRITTEN in row["meta"] else row["meta"].get("boxes_in", declared)
    if form is not None and form not in FORMS:
        raise MmdoraError(f"record {row['id']}: meta.boxes_in is {form!r:.80}; write {' or '.join(FORMS)}")
    return form


def rewritten(row: Row, form: str, style: str | None, write: Callable[[Box, FileRef], str]) -> Row:
    """The row with every declared box written anew, and the way named in `meta.boxes_as`.

    Args:
        form: what the numbers are.
        style: name of the way to write them.
        write: gives the text for a box in shares of its picture, and that picture.

    Raises:
        MmdoraError: a box is not four numbers, lies outside of its picture, or belongs to none.
    """
    messages, seen = [], 0

    def text_of(match: re.Match[str]) -> str:
        if not row["images"]:
            raise MmdoraError(f"record {row['id']}: {match[0][:80]!r} belongs to no picture: the record has none")
        image = row["images"][max(seen - 1, 0)]
        return write(_shares(match[1], form, size_of(image), row["id"]), image)

    for message in row["messages"]:
        parts: list[Any] = []
        for part in message["content"]:
            seen += part["type"] == "image"
            text = part.get("text")
            parts.append(part if text is None else part | {"text": MARK.sub(text_of, text)})
        messages.append(message | {"content": parts})
    return changed(row, messages=messages, meta=row["meta"] | {WRITTEN: style})


def size_of(image: FileRef) -> Size:
    """The size of a picture as it is shown; only its header is read."""
    height, width = image_size(image)
    return width, height


def find_boxes(text: str) -> list[Box]:
    """The boxes in an answer, in whatever way a family writes them, in the numbers of that way.

    `[x1, y1, x2, y2]`, `(x1, y1), (x2, y2)` and PaliGemma's four `<loc…>`, whose order is y1, x1, y2, x2.
    """
    found = [(match.start(), _box(match, (1, 2, 3, 4))) for match in _FOUR.finditer(text)]
    found += [(match.start(), _box(match, (2, 1, 4, 3))) for match in _PLACES.finditer(text)]
    return [box for _, box in sorted(found)]


def _box(match: re.Match[str], order: tuple[int, int, int, int]) -> Box:
    left, top, right, bottom = (float(match[group]) for group in order)
    return left, top, right, bottom


def iou(a: Box, b: Box) -> float:
    """Intersection over union of two boxes; 0 for one without an area. No scaling along an axis changes it."""
    width, height = (max(0.0, min(a[i + 2], b[i + 2]) - max(a[i], b[i])) for i in (0, 1))
    shared = width * height
    union = sum(max(0.0, box[2] - box[0]) * max(0.0, box[3] - box[1]) for box in (a, b)) - shared
    return shared / union if union > 0 else 0.0


def _shares(inside: str, form: str, size: Size, name: str) -> Box:
    """A box as shares of its picture's width and height, from the text of its mark."""
    try:
        left, top, right, bottom = (float(number) for number in inside.split(","))
    except ValueError:
        raise MmdoraError(
            f"record {name}: <box>{inside[:60]}</box> is no box; write <box>x1, y1, x2, y2</box>"
        ) from None
    width, height = size if form == "pixels" else (1, 1)
    box = left / width, top / height, right / width, bottom / height
    slack = _OUTSIDE / size[0], _OUTSIDE / size[1]
    inner = all(-slack[i % 2] <= value <= 1 + slack[i % 2] for i, value in enumerate(box))
    if not (inner and box[0] <= box[2] and box[1] <= box[3]):
        raise MmdoraError(
            f"record {name}: the box {inside.strip()[:60]} does not lie in its picture of {size[0]} x {size[1]} pixels "
            f"({form}: left, top, right, bottom)"
        )
    left, top, right, bottom = (min(max(value, 0.0), 1.0) for value in box)
    return left, top, right, bottom
