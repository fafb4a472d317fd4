from typing import Any

import pytest
from PIL import Image

from mmdora.errors import MmdoraError
from mmdora.records.boxes import find_boxes, form_of, iou, rewritten
from mmdora.records.row import row_of


@pytest.fixture
def pictures(tmp_path):
    Image.new("RGB", (200, 100)).save(tmp_path / "wide.png")
    Image.new("RGB", (100, 400)).save(tmp_path / "high.png")
    return tmp_path


def row(root, answer, *images, question="Where?", **meta):
    user = [*({"type": "image"} for _ in images), {"type": "text", "text": question}]
    messages: Any = [
        {"role": "user", "content": user},
        {"role": "assistant", "content": [{"type": "text", "text": answer}]},
    ]
    return row_of({"id": "r", "messages": messages, "images": list(images), "meta": meta}, root)


def shares(given, form):
    """The texts of the row after its boxes were written as their shares and the name of their picture."""
    made = rewritten(given, form, "shares", lambda box, image: f"{box} of {image.name}")
    return [part["text"] for message in made["messages"] for part in message["content"] if part["type"] == "text"]


def test_boxes_become_shares_of_their_picture(pictures):
    asked = row(pictures, "<box>0.5, 0, 1, 0.25</box>", "wide.png", question="Is <box>0,0,1,1</box> it?")
    assert shares(asked, "relative") == [
        "Is (0.0, 0.0, 1.0, 1.0) of wide.png it?", "(0.5, 0.0, 1.0, 0.25) of wide.png"
    ]  # fmt: skip
    in_pixels = row(pictures, "here: <box>50, 100, 100, 400.6</box>.", "wide.png", "high.png")
    assert shares(in_pixels, "pixels")[1] == "here: (0.5, 0.25, 1.0, 1.0) of high.png."
    assert in_pixels["messages"][1]["content"][0]["text"].startswith("here: <box>")


def test_a_box_in_front_of_all_pictures_belongs_to_the_first(pictures):
    given = row(pictures, "yes", "wide.png")
    given["messages"][0]["content"].reverse()
    given["messages"][0]["content"][0]["text"] = "<box>0, 0, 100, 50</box>"
    assert shares(given, "pixels")[0] == "(0.0, 0.0, 0.5, 0.5) of wide.png"


@pytest.mark.parametrize(
    ("answer", "images", "message"),
    [
        ("<box>1, 2, 3</box>", ["wide.png"], "is no box; write <box>x1, y1, x2, y2</box>"),
        ("<box>a, 2, 3, 4</box>", ["wide.png"], "is no box"),
        ("<box>10, 10, 5, 20</box>", ["wide.png"], "does not lie in its picture of 200 x 100 pixels"),
        ("<box>10, 10, 250, 20</box>", ["wide.png"], "does not lie in its picture"),
        ("<box>10, 10, 20, 20</box>", [], "belongs to no picture"),
    ],
)
def test_what_is_no_box_is_named(answer, images, message, pictures):
    with pytest.raises(MmdoraError, match=f"record r: .*{message}"):
        shares(row(pictures, answer, *images), "pixels")


def test_what_the_numbers_are_is_declared(pictures):
    assert form_of(row(pictures, "a")) is None and form_of(row(pictures, "a"), "pixels") == "pixels"
    assert form_of(row(pictures, "a", boxes_in="relative"), "pixels") == "relative"
    with pytest.raises(MmdoraError, match=r"meta\.boxes_in is 'cm'; write pixels or relative"):
        form_of(row(pictures, "a", boxes_in="cm"))
    # InternVL's own way to write a box is no declared one.
    assert shares(row(pictures, "<box>[[1, 2, 3, 4]]</box>", "wide.png"), "pixels")[1] == "<box>[[1, 2, 3, 4]]</box>"


def test_boxes_are_found_in_answers():
    assert find_boxes("it is [1, 2.5, 3, 4] or (5,6),(7, 8); not [1, 2]") == [(1, 2.5, 3, 4), (5, 6, 7, 8)]
    assert find_boxes('{"bbox_2d": [1, 2, 3, 4]} <box>[[9, 8, 10, 11]]</box>') == [(1, 2, 3, 4), (9, 8, 10, 11)]
    assert find_boxes("<loc0002><loc0001><loc0004><loc0003> cat") == [(1, 2, 3, 4)]
    assert find_boxes("nowhere") == []


def test_iou():
    assert iou((0, 0, 2, 2), (1, 0, 3, 2)) == pytest.approx(1 / 3) and iou((0, 0, 2, 2), (0, 0, 2, 2)) == 1
    assert iou((0, 0, 1, 1), (2, 2, 3, 3)) == 0 == iou((0, 0, 0, 0), (0, 0, 0, 0)) == iou((3, 3, 1, 1), (0, 0, 4, 4))
