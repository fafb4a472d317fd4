"""`report.html` of a folder of records: card, length histograms, a grid of samples, bad rows; one file, no requests."""

from __future__ import annotations

import base64
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
from mmdora.prepare import card
from mmdora.prepare.output import EDGES, MOST_TURNS
from mmdora.records.images import FileRef, decode, open_image
from mmdora.records.packed import read_packed
from mmdora.records.record import Record

TEMPLATE = "report.html.j2"
SIDE = 320  # pixels of a thumbnail's longer side
PICTURES = 4  # shown of a record
TEXT = 360  # characters shown of a question or an answer
REASONS = 12  # kinds of bad rows listed


@dataclass(frozen=True)
class Histogram:
    """Bars over bins; `note` says where the middle lies."""

    title: str
    bars: Sequence[tuple[str, int, float]]  # label, records, height in [0, 1]
    note: str


@dataclass(frozen=True)
class Sample:
    """A record as the page shows it; pictures as data URIs, or the reason why there is none."""

    id: str
    question: str
    answer: str
    more: int  # turns that are not shown
    type: str
    pictures: Sequence[str]
    problem: str


def write_report(out: Path) -> Path:
    """Write `out/report.html` from the card and the files beside it."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["thousands"] = lambda number: f"{number:,}"
    environment.filters["size"] = lambda count: f"{count / 1e6:,.1f} MB" if count >= 1e5 else f"{count / 1e3:,.1f} kB"
    facts = card.read(out)
    shown = {
        name: {"histograms": list(_histograms(split)), "samples": list(_samples(out, split))}
        for name, split in facts["splits"].items()
    }
    partial, path = out / "report.html.partial", out / "report.html"
    page = environment.get_template(TEMPLATE).render(card=facts, shown=shown, bad=_bad_rows(out))
    partial.write_text(page, encoding="utf-8")
    partial.replace(path)
    return path


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
    if not path.is_file():  # a split of an earlier run, moved away since
        return
    for record, files in _sampled(path, split["packed"], split["samples"]):
        pictures, problem = [], ""
        try:
            for number, name in enumerate(record["images"][:PICTURES]):
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
    image.thumbnail((SIDE, SIDE))
    file = io.BytesIO()
    image.save(file, "JPEG", quality=90)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()


def _short(text: str) -> str:
    return text if len(text) <= TEXT else text[:TEXT].rstrip() + " …"


def _bad_rows(out: Path) -> list[tuple[str, int, str]]:
    """The most frequent reasons, with their number and first place; numbers and names in them count as equal."""
    path = out / "bad_rows.jsonl"
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
    return [(first[kind][0], count, first[kind][1]) for kind, count in counts.most_common(REASONS)]


def _kind(reason: str) -> str:
    """A reason without what differs from row to row."""
    return re.sub(r"'[^']*'|\d+", "…", reason)
