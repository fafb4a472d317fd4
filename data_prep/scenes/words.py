"""Draws words to be read. They are invented, so that a model must read the words of the test split letter by letter."""

from __future__ import annotations

import math
from random import Random

from PIL import Image, ImageDraw, ImageFont

from mmdora.data_prep.scenes.drawing import COLOURS, SIDE, Asked, Draw
from mmdora.errors import MmdoraError

CONSONANTS, VOWELS = "BDFGKLMNPRSTVZ", "AEIOU"
PATTERNS = ("CVC", "VCV", "CVCV")
"""The order of consonants (C) and vowels (V) in a word."""
SIZES = (14, 16, 18)
"""Heights of the letters in pixels."""


def words(random: Random, name: str) -> Draw:
    """One word in capitals on a light background; the answer is in lower case."""
    pattern = random.choice(PATTERNS)
    word = "".join(random.choice(CONSONANTS if kind == "C" else VOWELS) for kind in pattern)
    ground = tuple(random.randint(228, 255) for _ in range(3))
    shades = [rgb for shades in COLOURS.values() for rgb in shades if math.dist(rgb, ground) > 180]
    picture = Image.new("RGB", (SIDE, SIDE), ground)
    pen, font = ImageDraw.Draw(picture), _font(random.choice(SIZES))
    left, top, right, bottom = pen.textbbox((0, 0), word, font=font)
    place = random.uniform(1, SIDE - 1 - (right - left)) - left, random.uniform(1, SIDE - 1 - (bottom - top)) - top
    pen.text(place, word, font=font, fill=random.choice(shades))
    return Draw(word, [Asked("which word is written here?", word.lower(), {"type": f"{len(word)} letters"})], [picture])


def _font(size: int) -> ImageFont.FreeTypeFont:
    """The font that comes with Pillow."""
    font = ImageFont.load_default(size)
    if not isinstance(font, ImageFont.FreeTypeFont):
        raise MmdoraError("drawing words needs Pillow with FreeType; its wheels on PyPI have it")
    return font
