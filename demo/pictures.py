"""Reads uploaded pictures, within limits of bytes and pixels. Without Gradio."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from PIL import Image

from mmdora.errors import MmdoraError
from mmdora.html import data_uri
from mmdora.records.images import FileRef, decode, open_image, read_header

MAX_UPLOAD = 10 * 10**6  # Bytes of an uploaded file: photos of phones are smaller.
THUMB = 72  # Pixels of a thumbnail's longer side: enough to know the picture again.
SHOWN = ("PNG", "JPEG", "MPO", "WEBP", "GIF", "BMP", "AVIF")
"""The formats that all browsers show."""
MAX_UPLOAD_PIXELS = 20 * 10**6  # Pixels of an upload: in RGB they take 60 MB, which strangers can make the server hold.


def check_upload(path: Path) -> None:
    """Check an uploaded file without decoding its pixels.

    Raises:
        MmdoraError: if the file is too large, is no image, or has too many pixels. The message never says where the
            server keeps the file.
    """
    with _opened(path) as file:
        read_header(file, "upload", max_pixels=MAX_UPLOAD_PIXELS)


def read_image(path: Path) -> Image.Image:
    """Read an uploaded file as RGB.

    Raises:
        MmdoraError: in the cases of `check_upload`, or if the pixels are damaged.
    """
    with _opened(path) as file:
        return decode(file.read(), "upload", max_pixels=MAX_UPLOAD_PIXELS)


def shown_by_browsers(path: Path) -> Path:
    """Check an uploaded file as `read_image` does; gives a file with this picture that every browser shows.

    Raises:
        MmdoraError: in the cases of `read_image`.
    """
    image = read_image(path)
    with _opened(path) as file:
        form = read_header(file, "upload", max_pixels=MAX_UPLOAD_PIXELS).format
    if form in SHOWN:
        return path
    copy = path.with_suffix(".png")
    image.save(copy)
    return copy


def thumbnail(picture: Path | FileRef) -> str:
    """A picture as a data URI, so small that a page can hold hundreds: about 2 kB.

    Raises:
        MmdoraError: if it cannot be read.
    """
    small = open_image(picture if isinstance(picture, FileRef) else FileRef(picture.name, picture.parent))
    small.thumbnail((THUMB, THUMB))
    content = io.BytesIO()
    small.save(content, "JPEG", quality=80)
    return data_uri(content.getvalue(), "image/jpeg")


def _opened(path: Path) -> Any:
    try:
        if path.stat().st_size > MAX_UPLOAD:
            raise MmdoraError(f"image: larger than {MAX_UPLOAD // 10**6} MB")
        return path.open("rb")
    except OSError:
        raise MmdoraError("The picture is no longer on the server; choose it again.") from None
