"""Pictures and features that a dataset makes itself, as files below the folder of its records."""

from __future__ import annotations

import io
import os
from pathlib import Path

from PIL import Image

from mmdora.errors import MmdoraError
from mmdora.files import write_whole
from mmdora.records.card import CARD


def save(out: Path, name: str, data: bytes) -> None:
    """Write a file below `out`, unless it is there. Where `out` has a card, other contents are an earlier run's.

    Raises:
        MmdoraError: another file of this name is there, in a folder without a card.
    """
    path = out / name
    if os.path.lexists(path):
        if path.is_file() and path.read_bytes() == data:
            return
        if not (out / CARD).is_file():
            raise MmdoraError(
                f"{path}: is there, and is not what would be written; it is not overwritten: give another --out"
            )
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, data, shared=True)


def png(picture: Image.Image, **options: int | bool) -> bytes:
    """A picture as the content of a PNG file, with options of Pillow's writer."""
    content = io.BytesIO()
    picture.save(content, "PNG", **options)
    return content.getvalue()
