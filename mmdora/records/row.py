"""A row: a record as it is learned or asked, its files as values that know where they are."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NotRequired, TypedDict, cast

from mmdora.records.images import FileRef
from mmdora.records.record import Record
from mmdora.records.turns import Messages


class Row(TypedDict):
    """What reading a file of records gives, and what batches and prompts are made of.

    Attributes:
        images: in the order of the image parts.
        features: a clip as precomputed features, from the record's `meta.features`.
        task: the name of the task it belongs to, in a run of several.
        weight: of its loss; 1 where there is none.
        masked: whether nothing is to be learned from it.
    """

    id: str
    messages: Messages
    images: list[FileRef]
    features: FileRef | None
    meta: dict[str, Any]
    task: NotRequired[str | None]
    weight: NotRequired[float]
    masked: NotRequired[bool]


def row_of(record: Record, root: Path, files: Sequence[bytes] | None = None) -> Row:
    """A record as a row.

    Args:
        root: the folder that its paths start from.
        files: the contents of its images, in their order, where the records hold them.
    """
    contents = files or [None] * len(record["images"])
    images = [
        FileRef(name, root if data is None else None, data)
        for name, data in zip(record["images"], contents, strict=True)
    ]
    clip = record["meta"].get("features")
    return {
        "id": record["id"],
        "messages": cast(Messages, record["messages"]),
        "images": images,
        "features": None if clip is None else FileRef(clip, root),
        "meta": record["meta"],
    }


def changed(row: Row, **changes: Any) -> Row:
    """The row with other values under some of its keys."""
    return cast(Row, {**row, **changes})
