"""Reads the records in a file, for tests of what `mmdora prep` writes."""

from pathlib import Path
from typing import Any

from mmdora.records.reader import read_records


def records_in(path: Path, images: Path | None = None) -> list[Any]:
    """The rows of a file as training reads them, but with the names of images instead of `FileRef`s."""
    return [
        {name: row[name] for name in ("id", "messages", "meta")} | {"images": [image.name for image in row["images"]]}
        for row in read_records(path, images)
    ]
