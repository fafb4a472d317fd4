"""Writes a page of wrong answers, with picture, question, reference and answers of one or more models.

The page is a single file that loads nothing else. All texts are escaped, and pictures are small copies. Its filters are
CSS, because the page of models shows it where scripts may not run. This module imports no torch.
"""

from __future__ import annotations

import io
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import cycle, permutations
from pathlib import Path
from random import Random

from PIL import Image, ImageDraw

from mmdora.evaluate.scoring.rows import Prediction
from mmdora.evaluate.tasks import Task
from mmdora.files import write_whole
from mmdora.html import data_uri, environment
from mmdora.records.boxes import Box
from mmdora.records.images import open_image
from mmdora.records.reader import Records
from mmdora.records.row import Row, videos_of
from mmdora.records.videos import open_video

TEMPLATE = "gallery.html.j2"
PICTURED = 60  # The most questions with their pictures on the page, so that its file stays at a few MB.
LISTED = 20_000  # The most questions below them, in words alone: about 10 MB, which a browser still opens at once.
SIDE = 256  # The longer side, in pixels, of the small copies of pictures.
STILLS = 4  # Frames of a video that the page shows.
SMALL = 128  # A picture whose longer side has at most this many pixels is kept as PNG, without loss.
REFERENCE = "the reference"
COLOURS = ("#00b050", "#e00040", "#0070ff", "#ff9000", "#a000e0")
"""Colours of the boxes: of the reference, and of up to four models."""


@dataclass(frozen=True)
class Card:
    """A question that a model got wrong."""

    marks: str  # CSS classes: r0 where model 0 has the full score, else w0; k2 for the third kind of questions
    pictures: list[str]  # pictures as data URIs; none below the first `PICTURED` questions
    kind: str
    question: str
    references: list[str]
    answers: list[tuple[str, str, float]]  # (model, text, score) of each answer
    boxes: list[tuple[str, str]]  # (colour, whose) of the boxes drawn on the first picture; empty without any


@dataclass(frozen=True)
class Kind:
    """One kind of questions: how many there are, and for each model how many are right and the mean score."""

    name: str
    n: int
    right: list[int]
    means: list[float]


@dataclass(frozen=True)
class Filter:
    """A choice of questions on the page: those with all classes of the selector; the empty one chooses all."""

    label: str
    selector: str
    count: int


def write_gallery(
    path: Path, task: Task, answers: Mapping[str, Sequence[Prediction]], records: Sequence[Row] | Records
) -> None:
    """Write the page of all questions without the full score, at most `PICTURED` of them with their pictures.

    Questions on which the models differ come first, then those with the lowest scores; equals are in a random order by
    a fixed seed.

    Args:
        answers: model -> scored rows; all models answer the same records.
        records: the records, which hold the pictures.
    """
    scores = [[row["score"] for row in rows] for rows in answers.values()]
    wrong, kinds = _wrong(scores), _kinds(answers)
    numbers = {kind.name: number for number, kind in enumerate(kinds)}
    cards = [
        _card(answers, row, records[row] if i < PICTURED else None, numbers) for i, row in enumerate(wrong[:LISTED])
    ]
    page = (
        environment(Path(__file__).parent)
        .get_template(TEMPLATE)
        .render(
            task=task,
            models=list(answers),
            total=len(scores[0]),
            missed=len(wrong),
            kinds=kinds,
            filters=_filters(cards, list(answers), kinds),
            cards=cards[:PICTURED],
            others=cards[PICTURED:],
        )
    )
    write_whole(path, page)


def _wrong(scores: Sequence[Sequence[float]]) -> list[int]:
    """Numbers of the rows for which some model got less than the full score, in the order in which they are shown."""
    rows = [number for number, own in enumerate(zip(*scores, strict=True)) if min(own) < 1]
    Random(0).shuffle(rows)

    def order(number: int) -> tuple[bool, float]:
        own = [column[number] for column in scores]
        return max(own) == min(own), min(own)

    return sorted(rows, key=order)


def _kinds(answers: Mapping[str, Sequence[Prediction]]) -> list[Kind]:
    scores: defaultdict[str, list[list[float]]] = defaultdict(list)
    for rows in zip(*answers.values(), strict=True):
        scores[rows[0].get("type") or ""].append([row["score"] for row in rows])
    return [
        Kind(
            name,
            len(own),
            [sum(score >= 1 for score in column) for column in zip(*own, strict=True)],
            [sum(column) / len(own) for column in zip(*own, strict=True)],
        )
        for name, own in sorted(scores.items(), key=lambda item: -len(item[1]))
    ]


def _filters(cards: Sequence[Card], models: Sequence[str], kinds: Sequence[Kind]) -> list[Filter]:
    """All questions, those that one model gets right and another wrong, and each kind; none that would show nothing."""
    wanted = {"all": ""}
    for right, wrong in permutations(range(len(models)), 2):
        wanted[f"{models[right]} right, {models[wrong]} wrong"] = f".r{right}.w{wrong}"
    wanted |= {kind.name or "other": f".k{number}" for number, kind in enumerate(kinds) if len(kinds) > 1}
    own = [set(card.marks.split()) for card in cards]
    counted = (
        Filter(label, selector, sum(set(filter(None, selector.split("."))) <= marks for marks in own))
        for label, selector in wanted.items()
    )
    return [chosen for chosen in counted if chosen.count]


def _card(
    answers: Mapping[str, Sequence[Prediction]], number: int, record: Row | None, kinds: Mapping[str, int]
) -> Card:
    """The card of a row; without a record it has no pictures.

    Args:
        kinds: name of a kind -> its number.
    """
    rows = {name: rows[number] for name, rows in answers.items()}
    row = next(iter(rows.values()))
    drawn = _drawn(rows) if record else []
    pictures = [open_image(image) for image in record["images"]] if record else []
    for video in videos_of(record) if record else ():
        shown = open_video(replace(video, frames=min(video.frames, STILLS)))
        pictures += [Image.fromarray(frame) for frame in shown.pixels]
    marks = [f"{'r' if own['score'] >= 1 else 'w'}{model}" for model, own in enumerate(rows.values())]
    return Card(
        " ".join([*marks, f"k{kinds[row.get('type') or '']}"]),
        [_data_uri(with_boxes(picture, () if number else drawn)) for number, picture in enumerate(pictures)],
        row.get("type") or "",
        row["question"],
        _references(row),
        [(name, own["prediction"], own["score"]) for name, own in rows.items()],
        [(colour, whose) for colour, whose, _ in drawn],
    )


def _drawn(rows: Mapping[str, Prediction]) -> list[tuple[str, str, list[Box]]]:
    """(colour, whose, boxes) of the reference and of each model that named a box."""
    own = {REFERENCE: next(iter(rows.values())).get("boxes", {}).get("answer", [])}
    own |= {name: row.get("boxes", {}).get("prediction", []) for name, row in rows.items()}
    named = [(whose, boxes) for whose, boxes in own.items() if boxes]
    return [(colour, *pair) for colour, pair in zip(cycle(COLOURS), named, strict=False)]


def with_boxes(picture: Image.Image, drawn: Sequence[tuple[str, str, Sequence[Box]]], side: int = SIDE) -> Image.Image:
    """A copy of the picture with boxes drawn on it, its longer side of at most `side` pixels; itself without any.

    Args:
        drawn: (colour, whose, boxes); the boxes are shares of the picture.
    """
    if not drawn:
        return picture
    copy = picture.copy()
    copy.thumbnail((side, side))
    pen = ImageDraw.Draw(copy)
    for colour, _, boxes in drawn:
        for left, top, right, bottom in boxes:
            edges = left * copy.width, top * copy.height, right * copy.width - 1, bottom * copy.height - 1
            pen.rectangle((*edges[:2], max(edges[0], edges[2]), max(edges[1], edges[3])), outline=colour, width=2)
    return copy


def _references(row: Prediction) -> list[str]:
    """The reference answers; if several people were asked, each answer has the number of people who gave it."""
    meta = row["meta"]
    if meta.get("answers"):
        return [f"{text} ×{count}" for text, count in Counter(meta["answers"]).most_common()]
    return list(meta.get("references") or [row["answer"]])


def _data_uri(picture: Image.Image) -> str:
    """The picture inside the page: PNG if it is small, else a JPEG of at most `SIDE` pixels."""
    small = max(picture.size) <= SMALL
    if not small:
        picture = picture.copy()  # Several questions may share the opened picture.
        picture.thumbnail((SIDE, SIDE))
    data = io.BytesIO()
    picture.save(data, "PNG" if small else "JPEG", quality=80)
    return data_uri(data.getvalue(), "image/png" if small else "image/jpeg")
