"""A row: a record as it is learned or asked, in which each file is a `FileRef` that knows where the file is."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NotRequired, TypedDict, cast

from mmdora.errors import MmdoraError
from mmdora.records.images import FileRef
from mmdora.records.record import Record
from mmdora.records.turns import Messages
from mmdora.records.videos import FRAMES, VideoRef


class Row(TypedDict):
    """A record as it was read. Batches and prompts are made of rows.

    Attributes:
        images: pictures in the order of the image parts.
        videos: videos in the order of the video parts; left out where there are none (`videos_of` gives them).
        features: file with the precomputed features of a clip, from the record's `meta.features`.
        task: name of the row's task, in a run of several tasks.
        weight: factor of the row's loss; a row without it has weight 1.
        masked: whether all labels of the row are masked, so that nothing is learned from it.
    """

    id: str
    messages: Messages
    images: list[FileRef]
    videos: NotRequired[list[VideoRef]]
    features: FileRef | None
    meta: dict[str, Any]
    task: NotRequired[str | None]
    weight: NotRequired[float]
    masked: NotRequired[bool]


def row_of(record: Record, root: Path, files: Sequence[bytes] | None = None) -> Row:
    """Make a row of a record.

    Args:
        root: folder that the record's paths start from.
        files: contents of its images, in their order, if they are packed into the records.
    """
    contents = files or [None] * len(record["images"])
    images = [
        FileRef(name, root if data is None else None, data)
        for name, data in zip(record["images"], contents, strict=True)
    ]
    clip = record["meta"].get("features")
    row: Row = {
        "id": record["id"],
        "messages": cast(Messages, record["messages"]),
        "images": images,
        "features": None if clip is None else FileRef(clip, root),
        "meta": record["meta"],
    }
    if names := record.get("videos"):
        parts = (part for message in row["messages"] for part in message["content"] if part["type"] == "video")
        row["videos"] = [
            VideoRef(name, root, part.get("frames", FRAMES), part.get("fps"))
            for name, part in zip(names, parts, strict=True)
        ]
    return row


def videos_of(row: Row) -> list[VideoRef]:
    """The videos of a row."""
    return row.get("videos", [])


def changed(row: Row, **changes: Any) -> Row:
    """A copy of the row with some of its keys changed."""
    return cast(Row, {**row, **changes})


@contextmanager
def naming(row: Row) -> Iterator[None]:
    """Put the row's name in front of the message of an MmdoraError that is raised inside."""
    try:
        yield
    except MmdoraError as error:
        raise MmdoraError(f"record {row['id']}: {error}") from None
