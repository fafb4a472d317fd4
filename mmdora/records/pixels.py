"""Converts pixels of every kind that files hold to RGB of 8 bits."""

from __future__ import annotations

import numpy as np
from PIL import Image

from mmdora.errors import MmdoraError

BACKGROUND = (255, 255, 255)
"""The RGB colour of transparent pixels: white, because the colours stored in them were never meant to show."""


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert a decoded image of any mode of Pillow to RGB.

    Raises:
        MmdoraError: in the cases of `eight_bits`.
    """
    if image.mode.startswith(("I", "F")):
        image = Image.fromarray(eight_bits(np.asarray(image)))
    if image.mode in ("La", "RGBa"):  # In these modes the colours are stored multiplied by the opacity.
        image = image.convert("LA" if image.mode == "La" else "RGBA")
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        canvas = Image.new("RGBA", image.size, (*BACKGROUND, 255))
        return Image.alpha_composite(canvas, image).convert("RGB")
    return image.convert("RGB")


def check_depth(image: Image.Image) -> None:
    """Raise an MmdoraError if a colour image of 16 bits per sample, of which Pillow keeps the upper 8, has 12 in use.

    Cameras and microscopes store 12 bits so, and the picture would come out black.
    """
    highest = int(np.asarray(image)[..., :3].max())
    if 0 < highest < 2**12 // 2**8:
        raise MmdoraError("its colours have 16 bits of which only 12 bits are in use; save it as 8 bits")


def eight_bits(samples: np.ndarray) -> np.ndarray:
    """[H, W] uint8: deeper samples (16-bit or 32-bit integers, or floats) scaled to 8 bits.

    No file says how many of its bits are used, so the largest sample decides. Integers up to 255 are taken for 8 bits,
    up to 4095 for 12 bits (as cameras and microscopes write them), and up to 65535 for 16 bits. Floats up to 1 are
    taken for shares of white, and up to 255 for 8 bits.

    Raises:
        MmdoraError: if there are samples below 0, above these ranges, or not finite, so that white is unknown.
    """
    low, high = samples.min(), samples.max()
    whites = (1.0, 255.0) if samples.dtype.kind == "f" else (2**8 - 1, 2**12 - 1, 2**16 - 1)
    white = next((white for white in whites if low >= 0 and high <= white), None)
    if white is None:
        kind = "floats" if samples.dtype.kind == "f" else "integers"
        raise MmdoraError(
            f"its samples are {kind} from {low:g} to {high:g}, and nothing says which value is white; save it as 8 bits"
        )
    if samples.dtype.kind == "f":
        return np.round(samples * (255 / white)).astype(np.uint8)
    return (samples // ((white + 1) // 2**8)).astype(np.uint8)
