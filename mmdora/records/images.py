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
MAX_ASPECT = 200  # a processor that scales the short side to 336 makes 3.4 million pixels of length of 1 x 10,000
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
    try:
        path = (home / name).resolve()
        if not path.is_relative_to(home):
            raise MmdoraError(f"image {name!r}: leads outside the images root {root}")
        found = path.is_file()
    except (OSError, RuntimeError, UnicodeError) as error:  # too long, a loop of links, no text
        reason = getattr(error, "strerror", None) or type(error).__name__
        raise MmdoraError(f"image {name[:80]!r}: no such file below {root} ({reason})") from None
    if not found:
        raise MmdoraError(f"image {name!r}: no such file below {root} (set data.images / --images to its root)")
    return path


class PackedImage(str):
    """The name of an image whose file is at hand, `data`, because the records hold it themselves."""

    data: bytes

    def __new__(cls, name: str, data: bytes) -> PackedImage:
        image = super().__new__(cls, name)
        image.data = data
        return image

    def __getnewargs__(self) -> tuple[str, bytes]:
        return str(self), self.data


def open_image(name: str, root: Path) -> Image.Image:
    """Open `name`, a file below `root` or a packed one; see `decode` for what is done to the pixels."""
    return decode(*image_bytes(name, root))


def image_bytes(name: str, root: Path) -> tuple[bytes, str]:
    """The content of `name`, a file below `root` or a packed one, and how errors call it.

    Raises:
        MmdoraError: as `locate`, or over 64 MiB.
    """
    file, where = _file(name, root)
    with file:
        return file.read(), where


def image_size(name: str, root: Path) -> tuple[int, int]:
    """(height, width) that `open_image` would give; reads the header only.

    Raises:
        MmdoraError: as `open_image`, but for pixels that are damaged.
    """
    file, where = _file(name, root)
    with file:
        image = read_header(file, where)
        width, height = image.size
        try:
            # asking a PNG without EXIF for it would decode the pixels; Pillow turns the size of a TIFF itself
            exif = image.getexif() if "exif" in image.info else {}
            sideways = exif.get(ExifTags.Base.Orientation, 1) >= SIDEWAYS
        except Exception as error:
            raise MmdoraError(f"image {where}: damaged or cut short ({error.__class__.__name__})") from None
    return (width, height) if sideways else (height, width)


def decode(data: bytes, where: str) -> Image.Image:
    """Decode the first frame to RGB: EXIF orientation applied, transparency over white, 16-bit scaled to 8.

    The size is checked before any pixel is decoded.

    Raises:
        MmdoraError: empty, not an allowed format, larger than 20 megapixels, or damaged.
    """
    image = read_header(io.BytesIO(data), where)
    try:
        image.load()
        ImageOps.exif_transpose(image, in_place=True)
        return _to_rgb(image)
    except Exception as error:
        raise MmdoraError(f"image {where}: damaged or cut short ({error.__class__.__name__})") from None


def _file(name: str, root: Path) -> tuple[IO[bytes], str]:
    """An image file, opened, and how errors call it."""
    if isinstance(name, PackedImage):
        size, where, file = len(name.data), f"{name} (packed)", io.BytesIO(name.data)
    else:
        path = locate(name, root)
        size, where, file = path.stat().st_size, str(path), path.open("rb")
    if size > MAX_BYTES:
        file.close()
        raise MmdoraError(f"image {where}: larger than {MAX_BYTES >> 20} MiB")
    return file, where


def read_header(file: IO[bytes], where: str) -> Image.Image:
    """An image of which nothing but the header is read yet: an allowed format, not too large.

    Raises:
        MmdoraError: as `decode`, but for pixels that are damaged.
    """
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
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise MmdoraError(f"image {where}: {width}x{height}: one side is over {MAX_ASPECT} times the other; cut it up")
    return image


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16") or image.mode == "I":
        image = image.convert("I").point(lambda value: value / 256).convert("L")
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        canvas = Image.new("RGBA", image.size, (*BACKGROUND, 255))
        return Image.alpha_composite(canvas, image).convert("RGB")
    return image.convert("RGB")
