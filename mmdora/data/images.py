"""One way to open an image, used by preparation, training, evaluation and the page alike."""

from __future__ import annotations

import io
import warnings
from pathlib import Path
from typing import IO

from PIL import ExifTags, Image, ImageOps

from mmdora.errors import MmdoraError

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF")
MAX_PIXELS = 20_000_000
MAX_BYTES = 64 * 2**20
SIDEWAYS = 5  # the EXIF orientations from here on swap width and height
BACKGROUND = (255, 255, 255)  # transparent pixels show white, never the hidden RGB below them


def locate(name: str, root: Path) -> Path:
    """The file `name` below `root`.

    Raises:
        MmdoraError: for URLs, absolute paths, `..` and symlinks that lead out of `root`, and for
            what is not a regular file.
    """
    if "://" in name or name.startswith("file:"):
        raise MmdoraError(f"image {name!r}: URLs are not fetched; save the file below {root}")
    if not name or "\0" in name or Path(name).is_absolute():
        raise MmdoraError(f"image {name!r}: give a path relative to the images root {root}")
    home = root.resolve()
    path = (home / name).resolve()
    if not path.is_relative_to(home):
        raise MmdoraError(f"image {name!r}: leads outside the images root {root}")
    if not path.is_file():
        raise MmdoraError(f"image {name!r}: no such file below {root} (set data.images / --images to its root)")
    return path


def open_image(name: str, root: Path) -> Image.Image:
    """Open `name` below `root`; see `decode` for what is done to the pixels."""
    path = _file(name, root)
    return decode(path.read_bytes(), str(path))


def image_size(name: str, root: Path) -> tuple[int, int]:
    """(height, width) that `open_image` would give; reads the header only.

    Raises:
        MmdoraError: as `open_image`, but for pixels that are damaged.
    """
    path = _file(name, root)
    with path.open("rb") as file:
        image = _open(file, str(path))
        width, height = image.size
        try:
            # asking a PNG without EXIF for it would decode the pixels; Pillow turns the size of a TIFF itself
            exif = image.getexif() if "exif" in image.info else {}
            sideways = exif.get(ExifTags.Base.Orientation, 1) >= SIDEWAYS
        except Exception as error:
            raise MmdoraError(f"image {path}: damaged or cut short ({error.__class__.__name__})") from None
    return (width, height) if sideways else (height, width)


def decode(data: bytes, where: str) -> Image.Image:
    """Decode the first frame to RGB: EXIF orientation applied, transparency over white, 16-bit scaled to 8.

    The size is checked before any pixel is decoded.

    Raises:
        MmdoraError: empty, not an allowed format, larger than 20 megapixels, or damaged.
    """
    image = _open(io.BytesIO(data), where)
    try:
        image.load()
        ImageOps.exif_transpose(image, in_place=True)
        return _to_rgb(image)
    except Exception as error:
        raise MmdoraError(f"image {where}: damaged or cut short ({error.__class__.__name__})") from None


def _file(name: str, root: Path) -> Path:
    path = locate(name, root)
    if path.stat().st_size > MAX_BYTES:
        raise MmdoraError(f"image {path}: larger than {MAX_BYTES >> 20} MiB")
    return path


def _open(file: IO[bytes], where: str) -> Image.Image:
    """The header, checked."""
    if not file.read(1):
        raise MmdoraError(f"image {where}: the file is empty")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(file, formats=FORMATS)
    except Image.DecompressionBombError:
        raise MmdoraError(f"image {where}: over the limit of {MAX_PIXELS // 10**6} megapixels") from None
    except Exception:  # Pillow's text holds a memory address and differs by format
        raise MmdoraError(f"image {where}: not an image of a known format ({', '.join(FORMATS)})") from None
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise MmdoraError(f"image {where}: {width}x{height} is over the limit of {MAX_PIXELS // 10**6} megapixels")
    return image


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16") or image.mode == "I":
        image = image.convert("I").point(lambda value: value / 256).convert("L")
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        canvas = Image.new("RGBA", image.size, (*BACKGROUND, 255))
        return Image.alpha_composite(canvas, image).convert("RGB")
    return image.convert("RGB")
