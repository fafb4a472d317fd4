"""How families write boxes, in the numbers that they were trained with.

The sources are: Qwen2-VL's README (`<|box_start|>(x1,y1),(x2,y2)<|box_end|>`, 0 to 1000); Qwen2.5-VL's and Qwen3-VL's
cookbooks on grounding and Qwen3-VL#931 (a list; pixels of the resized picture in 2.5, 0 to 1000 in 3); InternVL's
documentation, "grounding detection data", and InternVL#285 (`<box>[[…]]</box>`, int(1000 share)); PaliGemma's README in
big_vision and its model cards (`<loc0000>` to `<loc1023>`, y before x); LLaVA#606 (shares of the picture after it was
padded to a square).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize

from mmdora.errors import MmdoraError
from mmdora.records.boxes import FORMS, WRITTEN, Box, Size, find_boxes, form_of, rewritten, size_of
from mmdora.records.images import FileRef
from mmdora.records.reader import Records
from mmdora.records.row import Row


@dataclass(frozen=True)
class BoxStyle:
    """A way to write a box.

    Attributes:
        scaled: from shares of the picture, its size and its size as the model sees it, to the numbers that are written.
        shares: the inverse of `scaled`.
        text: of these numbers.
        resized: whether the numbers depend on the size that the model sees.
    """

    scaled: Callable[[Box, Size, Size], Box]
    shares: Callable[[Box, Size, Size], Box]
    text: Callable[[Box], str]
    resized: bool = False


def _by(most: int) -> tuple[Callable[[Box, Size, Size], Box], Callable[[Box, Size, Size], Box]]:
    """Whole numbers from 0 to `most`, cut off as InternVL's authors do, and the inverse."""
    return lambda box, *_: _each(box, lambda v: float(int(v * most))), lambda box, *_: _each(box, lambda v: v / most)


def _each(box: Box, change: Callable[[float], float]) -> Box:
    return change(box[0]), change(box[1]), change(box[2]), change(box[3])


def _to_pixels(box: Box, _: Size, seen: Size) -> Box:
    return _each(_sides(box, seen, lambda share, side: share * side), lambda value: float(round(value)))


def _of_pixels(box: Box, _: Size, seen: Size) -> Box:
    return _sides(box, seen, lambda value, side: value / side)


def _to_square(box: Box, size: Size, _: Size) -> Box:
    longer = max(size)
    return _sides(box, size, lambda share, side: (share * side + (longer - side) / 2) / longer)


def _of_square(box: Box, size: Size, _: Size) -> Box:
    longer = max(size)
    return _sides(box, size, lambda share, side: (share * longer - (longer - side) / 2) / side)


def _sides(box: Box, size: Size, change: Callable[[float, int], float]) -> Box:
    """Every value of a box after `change` of it and the side of the picture along its axis."""
    width, height = size
    return change(box[0], width), change(box[1], height), change(box[2], width), change(box[3], height)


def _list(box: Box, digits: int = 0) -> str:
    return "[" + ", ".join(f"{value:.{digits}f}" for value in box) + "]"


def _places(box: Box) -> str:
    return "".join(f"<loc{min(int(box[i]), 1023):04d}>" for i in (1, 0, 3, 2))


OUTSIDE = 0.02
"""The share of a picture's side that a box in an answer may reach over the edge, by rounding."""
_THOUSAND = _by(1000)
STYLES: Mapping[str, BoxStyle] = {
    "pixels": BoxStyle(_to_pixels, _of_pixels, _list, resized=True),
    "thousand": BoxStyle(*_THOUSAND, _list),
    "qwen2": BoxStyle(*_THOUSAND, lambda box: "<|box_start|>({:.0f},{:.0f}),({:.0f},{:.0f})<|box_end|>".format(*box)),
    "internvl": BoxStyle(*_THOUSAND, lambda box: f"<box>[{_list(box)}]</box>"),
    "loc": BoxStyle(*_by(1024), _places),
    "square": BoxStyle(_to_square, _of_square, lambda box: _list(box, 3)),
    "shares": BoxStyle(lambda box, *_: box, lambda box, *_: box, lambda box: _list(box, 3)),
}
"""The values of `data.boxes.to`."""

OWN = {
    "InternVLProcessor": "internvl",
    "LlavaProcessor": "square",
    "PaliGemmaProcessor": "loc",
    "Qwen2VLProcessor": "qwen2",
    "Qwen2_5_VLProcessor": "pixels",
    "Qwen3VLProcessor": "thousand",
}
"""Class name of a processor -> how its models were taught to write a box."""


def _lies_within(box: Box) -> bool:
    left, top, right, bottom = box
    return -OUTSIDE <= left < right <= 1 + OUTSIDE and -OUTSIDE <= top < bottom <= 1 + OUTSIDE


def boxed(processor: Any, records: Any, boxes: Mapping[Any, str] | None = None) -> Any:
    """`Records`, or a list of rows, whose declared boxes are written as the models of this processor write them.

    Args:
        boxes: the config's `data.boxes`.
    """
    rule = BoxRule.of(processor, boxes)
    if isinstance(records, Records):
        return records.changed_by(rule.written, json.dumps(boxes, sort_keys=True) if boxes else "")
    return [rule.written(row) for row in records]


@dataclass(frozen=True)
class BoxRule:
    """How the boxes of rows are written for one processor.

    Attributes:
        declared: what the numbers of rows are that do not say so themselves; None leaves their marks as they are.
        to: name of a style; None for the family's own.
    """

    processor: Any
    declared: str | None = None
    to: str | None = None

    @classmethod
    def of(cls, processor: Any, boxes: Mapping[Any, str] | None) -> BoxRule:
        """The rule of a config's `data.boxes`.

        Raises:
            MmdoraError: a key or a value is not known.
        """
        given = boxes or {}
        known = {"from": FORMS, "to": tuple(STYLES)}
        for key, value in given.items():
            if value not in known.get(key, ()):
                wanted = ", ".join(known.get(key, ())) or "only 'from' and 'to' are known"
                raise MmdoraError(f"boxes: {key}: {value!r:.40} cannot be used ({wanted})")
        return cls(processor, given.get("from"), given.get("to"))

    def written(self, row: Row) -> Row:
        """The row with its boxes as the model shall read and write them; without declared boxes, the row itself.

        Raises:
            MmdoraError: the family has no style of its own and none is named; or a box is none.
        """
        form = form_of(row, self.declared)
        if form is None:
            return row

        def write(box: Box, image: FileRef) -> str:
            style, size = self._style(self._name), size_of(image)
            return style.text(style.scaled(box, size, self._seen(style, size)))

        return rewritten(row, form, self._name, write)

    def found(self, row: Row, text: str) -> list[Box]:
        """The boxes in an answer to a row that `written` gave, as shares of its first picture."""
        style, size = self._style(row["meta"].get(WRITTEN)), size_of(row["images"][0])
        return [style.shares(box, size, self._seen(style, size)) for box in find_boxes(text)]

    def in_answer(self, text: str, size: Size) -> list[Box]:
        """The boxes in any answer about a picture, as shares of it; those that do not lie in it are left out.

        None are found for a family that has no way of its own to write one.
        """
        if self._name is None or (STYLES[self._name].resized and not self._tells_size):
            return []
        style = self._style(self._name)
        shares = [style.shares(box, size, self._seen(style, size)) for box in find_boxes(text)]
        return [box for box in shares if _lies_within(box)]

    @property
    def _tells_size(self) -> bool:
        return hasattr(self.processor.image_processor, "merge_size")

    @property
    def _name(self) -> str | None:
        return self.to or OWN.get(type(self.processor).__name__)

    def _style(self, name: str | None) -> BoxStyle:
        if name is None:
            kind = type(self.processor).__name__
            raise MmdoraError(
                f"data.boxes: models of {kind} have no way of their own to write a box; set data.boxes.to to one of "
                f"{', '.join(STYLES)}"
            )
        return STYLES[name]

    def _seen(self, style: BoxStyle, size: Size) -> Size:
        """The size of a picture as the model sees it, where the style depends on it."""
        if not style.resized:
            return size
        images = self.processor.image_processor
        if not self._tells_size:
            raise MmdoraError(
                f"data.boxes.to: pixels are those of the resized picture, whose size {type(images).__name__} does not "
                "tell; name another of " + ", ".join(STYLES)
            )
        height, width = smart_resize(
            size[1],
            size[0],
            factor=images.patch_size * images.merge_size,
            min_pixels=images.size["shortest_edge"],
            max_pixels=images.size["longest_edge"],
        )
        return width, height
