"""From official rows to finished lines of JSON: the work of the worker processes."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from mmdora.errors import MmdoraError
from mmdora.files import sha256, write_whole
from mmdora.prepare.features import measure
from mmdora.prepare.read import OfficialRow
from mmdora.prepare.record import Picture, RecordDraft
from mmdora.records.images import FileRef, image_size, locate, read_header
from mmdora.records.json_stream import parse_line
from mmdora.records.record import Record, check_record
from mmdora.records.videos import VideoRef, sampling

ROW_ERRORS = (MmdoraError, KeyError, TypeError, ValueError, IndexError, AttributeError)
"""What a row that cannot be used raises."""


@dataclass(frozen=True)
class Job:
    """What is the same for all rows of a run.

    Attributes:
        records: makes the records of a row; see `dataset.OfficialFiles`.
        root: the folder that image (or feature) paths start from; None if none was given.
        out: the folder of the records.
        pack: the records will hold their images themselves.
    """

    records: Callable[[OfficialRow], Iterable[RecordDraft]]
    root: Path | None
    out: Path
    pack: bool


class Shape(NamedTuple):
    """What the statistics count of a record.

    Attributes:
        question: characters of the user's and the system's text.
        answer: characters of the assistant's text.
        turns: how many answers it has.
        images: how many pictures, videos or feature files it has.
        answered: whether there is an answer at all.
        type: its kind, `meta.type`; empty if it has none.
    """

    question: int
    answer: int
    turns: int
    images: int
    answered: bool
    type: str


class Made(NamedTuple):
    """A record as a line of JSON.

    Attributes:
        row: the place of its row in the chunk.
        split: None if the row does not tell it.
        line: UTF-8, with the line end.
        files: the contents of its image files, if they are to be packed; else empty.
    """

    row: int
    split: str | None
    id: str
    line: bytes
    shape: Shape
    files: list[bytes]


class Bad(NamedTuple):
    """A row that cannot be used: its place in the chunk, and why."""

    row: int
    reason: str


def convert(job: Job, rows: Sequence[OfficialRow]) -> list[Made | Bad]:
    """The records of every row, in order, or the reason why the row cannot be used."""
    done: list[Made | Bad] = []
    for index, row in enumerate(rows):
        try:
            value = parsed(row.value)
            done += [_made(job, index, draft) for draft in job.records(row._replace(value=value))]
        except ROW_ERRORS as error:
            done.append(Bad(index, _reason(error)))
    return done


def _reason(error: Exception) -> str:
    if isinstance(error, MmdoraError):
        return str(error)
    if isinstance(error, KeyError):
        return f"no field {error}"
    return f"a field of an unexpected kind ({error.__class__.__name__}: {error})"


def parsed(value: Any) -> Any:
    """A row's value; a line of JSON is parsed.

    Raises:
        MmdoraError: the row could not be read, or the line is not JSON.
    """
    if isinstance(value, MmdoraError):
        raise value
    return parse_line(value) if isinstance(value, bytes) else value


def _made(job: Job, index: int, draft: RecordDraft) -> Made:
    names, files, meta = [], [], draft["meta"]
    for picture in draft["images"]:
        name, data = _placed(job, picture)
        names.append(name)
        files += [data] * (data is not None)
    if features := draft.get("features"):
        name, shape = measure(features, job.root)
        meta = {**meta, "features": name, "frames": shape[0]}
    row: dict[str, Any] = {"id": draft["id"], "messages": draft["messages"], "images": names, "meta": meta}
    if draft.get("videos"):
        row["videos"] = [_placed_video(job, name) for name in draft.get("videos", ())]
    record = check_record(row, f"record {draft['id']}")
    return Made(index, draft.get("split"), record["id"], line_of(record), shape_of(record), files)


def line_of(record: Record) -> bytes:
    """A record as a line of JSON in UTF-8.

    Raises:
        MmdoraError: a text holds half of a surrogate pair, which UTF-8 has no code for.
    """
    try:
        return json.dumps(record, ensure_ascii=False).encode() + b"\n"
    except UnicodeEncodeError:
        raise MmdoraError("holds half a surrogate pair, which is no text") from None


def shape_of(record: Record) -> Shape:
    """What the statistics count of a record."""
    question = answer = turns = 0
    for message in record["messages"]:
        size = sum(len(part.get("text", "")) for part in message["content"])
        if message["role"] == "assistant":
            answer, turns = answer + size, turns + 1
        else:
            question += size
    kind = str(record["meta"].get("type", ""))
    pictures = len(record["images"]) + len(record.get("videos", ())) + ("features" in record["meta"])
    return Shape(question, answer, turns, pictures, answer > 0, kind)


def _placed(job: Job, picture: Picture) -> tuple[str, bytes | None]:
    """The path that a record keeps for a picture, and the content of the file if it is to be packed."""
    if isinstance(picture, bytes):
        name = _content_name(picture)
        if job.pack:
            return name, picture
        if job.root is not None:
            raise MmdoraError("the file holds the images themselves; leave out --images, or --pack them")
        _save_once(job.out / name, picture)
        return name, None
    if job.root is None:
        raise MmdoraError(f"image {picture!r}: give the root of the image paths with --images")
    name = first_usable(picture, job.root) if isinstance(picture, tuple) else picture
    if not isinstance(name, str):
        raise MmdoraError(f"an image must be a path, not {type(name).__name__}")
    _check_image(name, job.root)
    path = locate(name, job.root)
    if Path(name).is_absolute():  # Records name files by their place below the root, so that they can be moved with it.
        name = str(path.relative_to(job.root.resolve()))
    return name, path.read_bytes() if job.pack else None


def _placed_video(job: Job, name: Any) -> str:
    """The path that a record keeps for a video, which is a file or a folder of frames."""
    if job.pack:
        raise MmdoraError("holds a video, and --pack puts pictures only into the records; leave it out")
    if job.root is None:
        raise MmdoraError(f"video {name!r}: give the root of the video paths with --images")
    if not isinstance(name, str):
        raise MmdoraError(f"a video must be a path, not {type(name).__name__}")
    video = VideoRef(name, job.root)
    path = video.path
    if path.is_dir():
        sampling(video)  # A file is not opened here, because that needs a decoder.
    return str(path.relative_to(job.root.resolve())) if Path(name).is_absolute() else name


def first_usable(names: tuple[str, ...], root: Path) -> str:
    """The first of the names that is an image below `root`; if none is, the first, which is then reported."""
    for name in names:
        try:
            _check_image(name, root)
            return name
        except MmdoraError:
            continue
    return names[0]


@lru_cache(maxsize=4096)
def _check_image(name: str, root: Path) -> None:
    """Raise for an image that could not be opened, by its header. Results are kept: neighbouring rows share images."""
    image_size(FileRef(name, root))


def _content_name(data: bytes) -> str:
    """The path of a picture that came without one: named by its content, so that equal pictures are one file."""
    kind = read_header(io.BytesIO(data), "in the row").format or ""
    digest = sha256(data)[:32]
    return f"images/{digest[:2]}/{digest}.{kind.lower().replace('jpeg', 'jpg')}"


def _save_once(path: Path, data: bytes) -> None:
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, data, shared=True)
