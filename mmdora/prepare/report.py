"""`report.html` of a folder of records: its card, histograms of lengths, some records, and the bad rows.

The page is one file that asks for no other.
"""

from __future__ import annotations

import io
import itertools
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from mmdora.errors import MmdoraError
from mmdora.html import data_uri, environment
from mmdora.outputs.written import Written
from mmdora.prepare.output import BAD_ROWS, EDGES, MOST_TURNS
from mmdora.records.card import read
from mmdora.records.images import FileRef, decode, open_image
from mmdora.records.packed import read_packed
from mmdora.records.record import Record

TEMPLATE, REPORT = "report.html.j2", "report.html"
THUMBNAIL_SIDE = 320
"""The longer side of a picture on the page, in pixels: two cards stand beside each other on a narrow screen."""
MOST_PICTURES = 4
"""How many pictures of a record are shown; a card has room for no more."""
MOST_CHARACTERS = 360
"""How many characters of a question or an answer are shown: about eight lines of a card."""
MOST_REASONS = 12
"""How many kinds of bad rows are listed, the most frequent first."""


@dataclass(frozen=True)
class Histogram:
    """Bars over bins.

    Attributes:
        bars: (label, number of records, height in [0, 1]) of each.
        note: where half and 95% of the records lie.
    """

    title: str
    bars: Sequence[tuple[str, int, float]]
    note: str


@dataclass(frozen=True)
class Sample:
    """A record as the page shows it.

    Attributes:
        more: how many turns are not shown.
        pictures: data URIs.
        problem: why a picture could not be shown; empty if all were.
    """

    id: str
    question: str
    answer: str
    more: int
    type: str
    pictures: Sequence[str]
    problem: str


def write_report(written: Written) -> None:
    """Write `report.html` from the card and the files beside it."""
    out = written.folder
    pages = environment(Path(__file__).parent)
    pages.filters["thousands"] = lambda number: f"{number:,}"
    pages.filters["size"] = lambda count: f"{count / 1e6:,.1f} MB" if count >= 1e5 else f"{count / 1e3:,.1f} kB"
    facts = read(out)
    shown = {
        name: {"histograms": list(_histograms(split)), "samples": list(_samples(out, split))}
        for name, split in facts["splits"].items()
    }
    written.write(REPORT, pages.get_template(TEMPLATE).render(card=facts, shown=shown, bad=_bad_rows(out)))


def _histograms(split: Mapping[str, Any]) -> Iterator[Histogram]:
    for title, key in (("Question, characters", "question_characters"), ("Answer, characters", "answer_characters")):
        counts = {int(bin): count for bin, count in split[key].items()}
        first, last = EDGES.index(min(counts)), EDGES.index(max(counts))
        yield _histogram(title, {edge: counts.get(edge, 0) for edge in EDGES[first : last + 1]}, "≤ ")
    turns = {int(bin): count for bin, count in split["turns"].items()}
    if len(turns) > 1:
        title = f"Turns ({MOST_TURNS}: {MOST_TURNS} or more)" if MOST_TURNS in turns else "Turns"
        yield _histogram(title, {turn: turns.get(turn, 0) for turn in range(min(turns), max(turns) + 1)}, "")


def _histogram(title: str, counts: Mapping[int, int], sign: str) -> Histogram:
    total, tallest = sum(counts.values()), max(counts.values())
    reached = dict(zip(counts, itertools.accumulate(counts.values()), strict=True))
    half, most = (next(bin for bin, count in reached.items() if count >= share * total) for share in (0.5, 0.95))
    bars = [(f"{sign}{bin:,}", count, count / tallest) for bin, count in counts.items()]
    return Histogram(title, bars, f"half {sign or '≤ '}{half:,}, 95% {sign or '≤ '}{most:,}")


def _samples(out: Path, split: Mapping[str, Any]) -> Iterator[Sample]:
    root = Path(split["images_root"]) if split["images_root"] else out
    path = out / Path(split["file"]).name
    if not path.is_file():  # an earlier run wrote this split, and its file was moved away since
        return
    for record, files in _sampled(path, split["packed"], split["samples"]):
        pictures, problem = [], ""
        try:
            for number, name in enumerate(record["images"][:MOST_PICTURES]):
                pictures.append(_thumbnail(decode(files[number], name) if files else open_image(FileRef(name, root))))
        except MmdoraError as error:
            problem = str(error)
        texts = [(m["role"], "".join(p.get("text", "") for p in m["content"])) for m in record["messages"]]
        question = next((text for role, text in texts if role == "user"), "")
        answer = next((text for role, text in texts if role == "assistant"), "")
        turns = sum(role == "assistant" for role, _ in texts)
        kind = str(record.get("meta", {}).get("type", ""))
        yield Sample(record["id"], _short(question), _short(answer), turns - 1, kind, pictures, problem)


def _sampled(path: Path, packed: bool, numbers: Sequence[int]) -> Iterator[tuple[Record, list[bytes]]]:
    wanted = set(numbers)
    if packed:
        yield from (item for number, item in enumerate(read_packed(path)) if number in wanted)
        return
    with path.open("rb") as file:
        yield from ((json.loads(line), []) for number, line in enumerate(file) if number in wanted)


def _thumbnail(image: Image.Image) -> str:
    image.thumbnail((THUMBNAIL_SIDE, THUMBNAIL_SIDE))
    file = io.BytesIO()
    image.save(file, "JPEG", quality=90)
    return data_uri(file.getvalue(), "image/jpeg")


def _short(text: str) -> str:
    return text if len(text) <= MOST_CHARACTERS else text[:MOST_CHARACTERS].rstrip() + " …"


def _bad_rows(out: Path) -> list[tuple[str, int, str]]:
    """(reason, number of rows, place of the first) of the most frequent reasons why rows could not be used."""
    path = out / BAD_ROWS
    if not path.exists():
        return []
    counts: Counter[str] = Counter()
    first: dict[str, tuple[str, str]] = {}
    with path.open(encoding="utf-8") as file:
        for line in file:
            row = json.loads(line)
            kind = _kind(row["reason"])
            counts[kind] += 1
            place = f"{row['file']}:{row['line']}" if row["line"] else f"{row['file']}: row {row['row']}"
            first.setdefault(kind, (row["reason"], place))
    return [(first[kind][0], count, first[kind][1]) for kind, count in counts.most_common(MOST_REASONS)]


def _kind(reason: str) -> str:
    """A reason without the names and numbers in it, so that the same fault of two rows counts as one kind."""
    return re.sub(r"'[^']*'|\d+", "…", reason)
