"""Handwritten digits (Alpaydin and Kaynak, 1998) as questions about 1,797 real scans that scikit-learn contains.

`sklearn.datasets.load_digits` gives images [1797, 8, 8] with values from 0 (paper) to 16 (ink), and targets 0 to 9
(checked against version 1.9). The scans are scaled to 64x64 pixels, black on white. A hash of a scan's pixels says
whether it belongs to the test split. In the split train a scan is one record of three turns; in the split test every
question is a record.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
from PIL import Image

from mmdora.errors import MmdoraError
from mmdora.prepare import pictures
from mmdora.prepare.dataset import Dataset, Origin
from mmdora.prepare.held_out import held_out
from mmdora.prepare.run import write_splits
from mmdora.records.record import Record, qa_record

SIDE = 64
"""Width and height of a picture in pixels, the same as in easy-VQA and in the drawn scenes."""
NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


def prepare(out: Path) -> dict[str, int]:
    """Write the digits as records; returns the number of records per split.

    Parameters
    ----------
    out
        Folder for a file per split, dataset_card.json and report.html.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise MmdoraError("the digits come with scikit-learn: pip install 'mmdora[eval]'") from None
    return write_splits(out, DATASET, partial(_make, *load_digits(return_X_y=True), out))


def _make(scans: Any, targets: Any, out: Path) -> dict[str, list[Record]]:
    scans = np.asarray(scans, dtype=np.uint8).reshape(-1, 8, 8)
    splits: dict[str, list[Record]] = {"train": [], "test": []}
    for number, (scan, target) in enumerate(zip(scans, targets, strict=True)):
        split = "test" if held_out(scan.tobytes()) else "train"
        name = f"images/{split}/{number}.png"
        pictures.save(out, name, _drawn(scan))
        pairs = _questions(Random(f"digits:{number}"), int(target))
        if split == "train":
            splits[split].append(qa_record(f"{split}-{number}", name, pairs))
        else:
            splits[split] += _singly(f"{split}-{number}", name, pairs)
    return splits


def _drawn(scan: np.ndarray) -> bytes:
    """The content of a PNG file of a scan [8, 8] uint8 with values from 0 to 16."""
    picture = Image.fromarray(np.round(255 - scan * (255 / 16)).astype(np.uint8))
    return pictures.png(picture.resize((SIDE, SIDE), Image.Resampling.BICUBIC))


def _questions(random: Random, digit: int) -> list[tuple[str, str]]:
    """Ask which digit it is, whether it is even, and whether it is a given digit (in half of the cases, yes)."""
    other = random.choice([number for number in range(10) if number != digit])
    named = digit if random.random() < 0.5 else other
    return [
        ("which digit is this?", str(digit)),
        ("is this digit even?", "no" if digit % 2 else "yes"),
        (f"is this the digit {NUMBERS[named]}?", "yes" if named == digit else "no"),
    ]


def _singly(name: str, image: str, pairs: list[tuple[str, str]]) -> Iterator[Record]:
    for number, pair in enumerate(pairs):
        yield qa_record(f"{name}-{number}", image, [pair])


DATASET = Dataset(
    name="digits",
    summary="Handwritten digits as questions: 1,797 real scans",
    details="Takes the scans from scikit-learn, so there is no file to give. Writes the pictures to images/ below OUT.",
    example="--out data/digits",
    origin=Origin(
        licence="CC BY 4.0",
        source="https://archive.ics.uci.edu/dataset/80/ (test set); sklearn.datasets.load_digits",
        unverified=("the licence: no statement of its owners was at hand",),
    ),
    make=prepare,
)
