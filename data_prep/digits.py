"""Handwritten digits (Alpaydin and Kaynak, 1998) as questions: 1,797 real scans, as scikit-learn carries them.

`sklearn.datasets.load_digits`: images [1797, 8, 8] of 0 to 16, ink high, and targets 0 to 9 (checked against
version 1.9). Here they are drawn 64x64, black on white. Which scans are tested on is told by a hash of their
pixels. To train, a scan is one record of three turns; to test, every question is a record.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from random import Random

import numpy as np
from PIL import Image

from mmdora.errors import MmdoraError
from mmdora.prepare.held_out import held_out
from mmdora.prepare.run import write_splits
from mmdora.records.record import Record, qa_record

NAME = "digits"
LICENCE = "CC BY 4.0"
SOURCE = "https://archive.ics.uci.edu/dataset/80/ (test set); sklearn.datasets.load_digits"
UNVERIFIED = ("the licence: no statement of its owners was at hand",)

SIDE = 64
NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


def prepare(out: Path) -> dict[str, int]:
    """Handwritten digits: `train.jsonl`, `test.jsonl`, `images/`, card and report. Needs scikit-learn.

    Example: `mmdora prep digits --out data/digits`

    Parameters
    ----------
    out
        Folder for a file per split, dataset_card.json and report.html.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise MmdoraError("the digits come with scikit-learn: pip install 'mmdora[eval]'") from None
    scans, targets = load_digits(return_X_y=True)
    scans = np.asarray(scans, dtype=np.uint8).reshape(-1, 8, 8)
    splits: dict[str, list[Record]] = {"train": [], "test": []}
    for number, (scan, target) in enumerate(zip(scans, targets, strict=True)):
        split = "test" if held_out(scan.tobytes()) else "train"
        name = f"images/{split}/{number}.png"
        _save(scan, out / name)
        pairs = _questions(Random(f"digits:{number}"), int(target))
        if split == "train":
            splits[split].append(qa_record(f"{split}-{number}", name, pairs))
        else:
            splits[split] += _singly(f"{split}-{number}", name, pairs)
    return write_splits(out, sys.modules[__name__], splits)


def _save(scan: np.ndarray, path: Path) -> None:
    """A scan, [8, 8] uint8 of 0 to 16, as a picture."""
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = Image.fromarray(np.round(255 - scan * (255 / 16)).astype(np.uint8))
    picture.resize((SIDE, SIDE), Image.Resampling.BICUBIC).save(path)


def _questions(random: Random, digit: int) -> list[tuple[str, str]]:
    """Which digit; whether it is even; whether it is the one named, as often as not."""
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
