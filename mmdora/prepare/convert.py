"""Rows to finished lines: what the worker processes do."""

from __future__ import annotations

import hashlib
import io
import json
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from mmdora.errors import MmdoraError
from mmdora.prepare.features import measure
from mmdora.prepare.read import Row
from mmdora.prepare.record import Picture
from mmdora.records.images import FileRef, image_size, locate, read_header
from mmdora.records.json_stream import parse_line
from mmdora.records.record import Record, check_record


@dataclass(frozen=True)
class Job:
    """What is the same for all rows of a run."""

    records: Callable[[Row], Iterable[Record]]
    root: Path | None  # of the image paths
    out: Path
    pack: bool


class Shape(NamedTuple):
    """What the statistics count of a record."""

    question: int  # characters of the user's and the system's text
    answer: int  # characters of the assistant's text
    turns: int
    images: int  # or feature files
    answered: bool
    type: str


class Made(NamedTuple):
    """A record as a line of JSON, with the contents of its image files when they are packed."""

    row: int  # in its chunk
    split: str | None
    id: str
    line: bytes
    shape: Shape
    files: list[bytes]


class Bad(NamedTuple):
    row: int
    reason: str


def convert(job: Job, rows: Sequence[Row]) -> list[Made | Bad]:
    """Every row as its records, in order, or as the reason why it cannot be used."""
    done: list[Made | Bad] = []
    for index, row in enumerate(rows):
        try:
            value = _parsed(row.value)
            done += [_made(job, index, record, row) for record in job.records(row._replace(value=value))]
        except KeyError as error:
            done.append(Bad(index, f"no field {error}"))
        except MmdoraError as error:
            done.append(Bad(index, str(error)))
        except (TypeError, ValueError, IndexError, AttributeError) as error:
            done.append(Bad(index, f"a field of an unexpected kind ({error.__class__.__name__}: {error})"))
    return done


def _parsed(value: Any) -> Any:
    if isinstance(value, MmdoraError):
        raise value
    return parse_line(value) if isinstance(value, bytes) else value


def _made(job: Job, index: int, record: Record, row: Row) -> Made:
    split = record.pop("split", None)
    names, files = [], []
    for picture in record["images"]:
        name, data = _placed(job, picture)
        names.append(name)
        files += [data] * (data is not None)
    if features := record.pop("features", None):
        name, shape = measure(features, job.root)
        record["meta"] |= {"features": name, "frames": shape[0]}
    checked = check_record(record | {"images": names}, f"record {record.get('id')}")
    return Made(index, split, checked["id"], line_of(checked), shape_of(checked), files)


def line_of(record: Record) -> bytes:
    try:
        return json.dumps(record, ensure_ascii=False).encode() + b"\n"
    except UnicodeEncodeError:
        raise MmdoraError("holds half a surrogate pair, which is no text") from None


def shape_of(record: Record) -> Shape:
    question = answer = turns = 0
    for message in record["messages"]:
        size = sum(len(part.get("text", "")) for part in message["content"])
        if message["role"] == "assistant":
            answer, turns = answer + size, turns + 1
        else:
            question += size
    kind = str(record["meta"].get("type", ""))
    pictures = len(record["images"]) + ("features" in record["meta"])
    return Shape(question, answer, turns, pictures, answer > 0, kind)


def _placed(job: Job, picture: Picture) -> tuple[str, bytes | None]:
    """The path a record keeps for a picture, and the file itself if it is to be packed."""
    if isinstance(picture, bytes):
        name = _name_of(picture)
        if job.pack:
            return name, picture
        if job.root is not None:
            raise MmdoraError("the file holds the images themselves; leave out --images, or --pack them")
        _save(job.out / name, picture)
        return name, None
    if job.root is None:
        raise MmdoraError(f"image {picture!r}: give the root of the image paths with --images")
    name = _first(picture, job.root) if isinstance(picture, tuple) else picture
    if not isinstance(name, str):
        raise MmdoraError(f"an image must be a path, not {type(name).__name__}")
    _check(name, job.root)
    return name, locate(name, job.root).read_bytes() if job.pack else None


def _first(names: tuple[str, ...], root: Path) -> str:
    """The first of the names that is a file below `root`; else the first, whose error then names it."""
    for name in names:
        try:
            _check(name, root)
            return name
        except MmdoraError:
            continue
    return names[0]


@lru_cache(maxsize=4096)
def _check(name: str, root: Path) -> None:
    """Raise for an image that could not be opened; reads its header only. Rows in a row often share an image."""
    image_size(FileRef(name, root))


def _name_of(data: bytes) -> str:
    """Where a picture without a path goes: named by its content, so that equal ones are one file."""
    kind = read_header(io.BytesIO(data), "in the row").format or ""
    digest = hashlib.sha256(data).hexdigest()[:32]
    return f"images/{digest[:2]}/{digest}.{kind.lower().replace('jpeg', 'jpg')}"


def _save(path: Path, data: bytes) -> None:
    if path.exists():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    partial.write_bytes(data)
    partial.replace(path)
