"""One way to open an image, used by preparation, training, evaluation and the page alike."""

from __future__ import annotations

import io
import warnings
from pathlib import Path

from PIL import Image, ImageOps

from mmdora.errors import MmdoraError

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF")
MAX_PIXELS = 20_000_000
MAX_BYTES = 64 * 2**20
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
    path = locate(name, root)
    if path.stat().st_size > MAX_BYTES:
        raise MmdoraError(f"image {path}: larger than {MAX_BYTES >> 20} MiB")
    return decode(path.read_bytes(), str(path))


def decode(data: bytes, where: str) -> Image.Image:
    """Decode the first frame to RGB: EXIF orientation applied, transparency over white, 16-bit scaled to 8.

    The size is checked before any pixel is decoded.

    Raises:
        MmdoraError: empty, not an allowed format, larger than 20 megapixels, or damaged.
    """
    if not data:
        raise MmdoraError(f"image {where}: the file is empty")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(data), formats=FORMATS)
    except Image.DecompressionBombError:
        raise MmdoraError(f"image {where}: over the limit of {MAX_PIXELS // 10**6} megapixels") from None
    except Exception:  # Pillow's text holds a memory address and differs by format
        raise MmdoraError(f"image {where}: not an image of a known format ({', '.join(FORMATS)})") from None
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise MmdoraError(f"image {where}: {width}x{height} is over the limit of {MAX_PIXELS // 10**6} megapixels")
    try:
        image.load()
        image = ImageOps.exif_transpose(image)
        return _to_rgb(image)
    except Exception as error:
        raise MmdoraError(f"image {where}: damaged or cut short ({error.__class__.__name__})") from None


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16") or image.mode == "I":
        image = image.convert("I").point(lambda value: value / 256).convert("L")
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        canvas = Image.new("RGBA", image.size, (*BACKGROUND, 255))
        return Image.alpha_composite(canvas, image).convert("RGB")
    return image.convert("RGB")
