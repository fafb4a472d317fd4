"""Opens images. Preparation, training, evaluation and the page all use this module, so they see the same pixels."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from PIL import ExifTags, Image, ImageOps, features

from mmdora.errors import MmdoraError
from mmdora.records.pixels import check_depth, to_rgb

try:
    import pillow_heif  # pyright: ignore[reportMissingImports]
except ImportError:  # It comes with the extra `heic`.
    pillow_heif = None
else:
    pillow_heif.register_heif_opener()

FORMATS = (
    *("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF"),
    *(["AVIF"] if features.check("avif") else []),
    *(["HEIF"] if pillow_heif else []),
)
"""The formats that Pillow may open. JPEG includes MPO, a file with several photographs, of which the first is taken."""
MAX_PIXELS = 160_000_000
"""The most pixels of a picture: the largest cameras make 151 megapixels, and Pillow itself refuses 179. A picture of
this size takes 480 MB in RGB, so the demo page, which strangers can reach, sets a lower limit."""
MAX_BYTES = 512 * 2**20
"""The most bytes of a picture's file: room for `MAX_PIXELS` at 3 bytes each, even without compression."""
# Largest ratio of the sides. Without it, a processor that scales the short side to 336 would make an image of
# 1 x 10,000 pixels 3.4 million pixels long.
MAX_ASPECT = 200
HEIC_BRANDS = (b"heic", b"heix", b"hevc", b"heim", b"heis", b"mif1", b"msf1")
"""The brands at byte 8 of a HEIC file (ISO/IEC 23008-12)."""
VIDEOS = (b"\x1a\x45\xdf\xa3", b"FLV\1", b"\0\0\1\xba")
"""How files of Matroska (WebM), FLV and MPEG begin."""
VIDEO_BRANDS = (b"iso", b"mp4", b"M4V", b"qt", b"avc", b"3gp", b"dash", b"MSNV", b"f4v")
"""How the brands at byte 8 of MP4 and MOV files begin."""
BEGINNINGS: dict[str, Callable[[bytes], bool]] = {
    "PNG": lambda start: start.startswith(b"\x89PNG"),
    "JPEG": lambda start: start.startswith(b"\xff\xd8\xff"),
    "TIFF": lambda start: start.startswith((b"II*\0", b"MM\0*")),
    "WEBP": lambda start: start.startswith(b"RIFF") and start[8:12] == b"WEBP",
    "AVIF": lambda start: start[4:12] in (b"ftypavif", b"ftypavis"),
    "HEIC": lambda start: start[4:8] == b"ftyp" and start[8:12] in HEIC_BRANDS,
}
"""The formats whose first 12 bytes show them, so that a file that cannot be opened is not called unknown."""
SIDEWAYS = 5  # The EXIF orientations from 5 to 8 swap width and height.


def locate(name: str, root: Path, *, what: str = "image", folder: bool = False) -> Path:
    """The path of the file `name` below `root`. The name may be an absolute path, if that lies below the root.

    Args:
        what: what the file is, for errors.
        folder: whether it may be a folder, too.

    Raises:
        MmdoraError: if the name is a URL, if an absolute path, `..` or a symlink leads out of `root`, or if there is no
            regular file.
    """
    if "://" in name or name.startswith("file:"):
        raise MmdoraError(f"{what} {name!r}: URLs are not fetched; save the file below {root}")
    if not name or "\0" in name:
        raise MmdoraError(f"{what} {name!r}: give a path relative to the images root {root}")
    home = root.resolve()
    try:
        path = (home / name).resolve()
        if not path.is_relative_to(home):
            raise MmdoraError(
                f"{what} {name!r}: leads outside the images root {root}; give a path below it, relative to it"
            )
        found = path.is_file() or (folder and path.is_dir())
    except (OSError, RuntimeError, UnicodeError) as error:  # The name is too long, a loop of links, or not text.
        reason = getattr(error, "strerror", None) or type(error).__name__
        raise MmdoraError(f"{what} {name[:80]!r}: no such file below {root} ({reason})") from None
    if not found:
        raise MmdoraError(f"{what} {name!r}: no such file below {root} (set data.images / --images to its root)")
    return path


@dataclass(frozen=True)
class FileRef:
    """A file that a record names (a picture or features), as one value that knows where the file is.

    Attributes:
        name: path of the file below `root`, as the record has it.
        root: folder that the name starts from; None if the file's content is packed into the records.
        data: content of a file that is packed into the records (`mmdora prep --pack`); the name then only serves to
            name the file in errors.
    """

    name: str
    root: Path | None = None
    data: bytes | None = field(default=None, repr=False)

    def __str__(self) -> str:
        return self.name

    @property
    def where(self) -> str:
        """The name of the file in errors."""
        return f"{self.name} (packed)" if self.data is not None else str(self.path)

    @property
    def path(self) -> Path:
        """The path of the file below the root.

        Raises:
            MmdoraError: in the cases of `locate`.
        """
        assert self.root is not None, f"{self.name} has neither a root nor content"
        return locate(self.name, self.root)


def open_image(image: FileRef) -> Image.Image:
    """Open a picture; see `decode` for what is done to the pixels."""
    return decode(*image_bytes(image))


def image_bytes(image: FileRef) -> tuple[bytes, str]:
    """The content of a picture's file, and its name in errors.

    Raises:
        MmdoraError: in the cases of `locate`, or if the file is over `MAX_BYTES`.
    """
    file, where = _opened(image)
    with file:
        return file.read(), where


def image_size(image: FileRef) -> tuple[int, int]:
    """(height, width) in pixels of the image that `open_image` would give. In most modes only the header is read.

    Raises:
        MmdoraError: in the cases of `open_image`, except that damaged pixels are not noticed.
    """
    file, where = _opened(image)
    with file:
        header = read_header(file, where)
        width, height = header.size
        if header.mode in ("I", "F"):  # Only the pixels tell whether an image of these rare modes can be shown.
            file.seek(0)
            decode(file.read(), where)
        try:
            # Pillow would decode all pixels of a PNG to look for EXIF, so it is asked only if EXIF was seen already.
            # For a TIFF, Pillow has already turned the size.
            exif = header.getexif() if "exif" in header.info else {}
            sideways = exif.get(ExifTags.Base.Orientation, 1) >= SIDEWAYS
        except Exception as error:
            raise MmdoraError(f"image {where}: damaged or cut short ({error.__class__.__name__})") from None
    return (width, height) if sideways else (height, width)


def decode(data: bytes, where: str, *, max_pixels: int | None = None) -> Image.Image:
    """Decode the first frame to RGB.

    The EXIF orientation is applied, transparent pixels become white, and deep samples are scaled to 8 bits (see
    `pixels.eight_bits`). The size is checked before any pixel is decoded.

    Args:
        data: content of the file.
        where: name of the file in errors.
        max_pixels: the most pixels; by default `MAX_PIXELS`.

    Raises:
        MmdoraError: if the file is empty, not in an allowed format, over `max_pixels`, damaged, or has samples without
            a known scale.
    """
    image = read_header(io.BytesIO(data), where, max_pixels=max_pixels)
    deep = ";16" in str(getattr(image, "tile", ""))  # Only a picture that was opened from a file has tiles.
    try:
        image.load()
        if deep:
            check_depth(image)
        ImageOps.exif_transpose(image, in_place=True)
        return to_rgb(image)
    except MmdoraError as error:
        raise MmdoraError(f"image {where}: {error}") from None
    except Exception as error:
        raise MmdoraError(f"image {where}: damaged or cut short ({error.__class__.__name__})") from None


def _opened(image: FileRef) -> tuple[IO[bytes], str]:
    """Open a picture's file; gives the file and its name in errors."""
    if image.data is not None:
        size, where, file = len(image.data), image.where, io.BytesIO(image.data)
    else:
        path = image.path
        size, where, file = path.stat().st_size, str(path), path.open("rb")
    if size > MAX_BYTES:
        file.close()
        raise MmdoraError(f"image {where}: larger than {MAX_BYTES >> 20} MiB")
    return file, where


def read_header(file: IO[bytes], where: str, *, max_pixels: int | None = None) -> Image.Image:
    """Open an image by reading its header only, and check its format and size.

    Args:
        max_pixels: the most pixels; by default `MAX_PIXELS`.

    Raises:
        MmdoraError: in the cases of `decode`, except that damaged pixels are not noticed.
    """
    limit = MAX_PIXELS if max_pixels is None else max_pixels
    start = file.read(12)
    if not start:
        raise MmdoraError(f"image {where}: the file is empty")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(file, formats=FORMATS)
    except Image.DecompressionBombError:
        raise MmdoraError(f"image {where}: over the limit of {limit // 10**6} megapixels; scale it down") from None
    except Exception:  # Pillow's own message contains a memory address and differs by format, so it is not shown.
        if lacking := _lacking(start):
            raise MmdoraError(f"image {where}: {lacking}") from None
        if form := next((form for form, begins in BEGINNINGS.items() if begins(start)), None):
            such = " (such as 12 bits per sample)" if form == "TIFF" else ""
            raise MmdoraError(
                f"image {where}: a {form} that cannot be read: damaged or cut short, or of a kind that Pillow does "
                f"not know{such}; save it as PNG or JPEG of 8 bits"
            ) from None
        raise MmdoraError(f"image {where}: not an image of a known format ({', '.join(FORMATS)})") from None
    width, height = image.size
    if width * height > limit:
        raise MmdoraError(
            f"image {where}: {width}x{height} is over the limit of {limit // 10**6} megapixels; scale it down"
        )
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise MmdoraError(f"image {where}: {width}x{height}: one side is over {MAX_ASPECT} times the other; cut it up")
    if image.mode == "LAB":  # Pillow does not convert it.
        raise MmdoraError(f"image {where}: its colours are CIELAB; save it as RGB")
    return image


def _lacking(start: bytes) -> str | None:
    """A phrase that says what to install to open a file that begins like this; None if that would not help."""
    brand = start[8:12] if start[4:8] == b"ftyp" else b""
    if brand in HEIC_BRANDS and not pillow_heif:
        return "a HEIC photograph; pip install 'mmdora[heic]', or save it as JPEG"
    if brand.startswith(VIDEO_BRANDS) or start.startswith(VIDEOS):
        return "a video, where a picture is expected; records name videos under 'videos'"
    if brand in (b"avif", b"avis") and "AVIF" not in FORMATS:
        return "an AVIF picture, which this build of Pillow cannot read; install Pillow's own wheel, or save it as PNG"
    return None
