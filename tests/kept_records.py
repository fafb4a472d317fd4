"""The records of a file, for tests of what `mmdora prep` wrote."""

from pathlib import Path
from typing import Any

from mmdora.records.reader import read_records


def records_in(path: Path, images: Path | None = None) -> list[Any]:
    """The rows that reading the file gives, as training does, with the names of images instead of their files."""
    return [
        {name: row[name] for name in ("id", "messages", "meta")} | {"images": [image.name for image in row["images"]]}
        for row in read_records(path, images)
    ]
