"""Records to run a family on: pictures of several sizes, several turns, two pictures, and none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from mmdora.records.reader import write_records

SIZES = [(40, 30), (64, 64), (200, 90), (17, 31), (300, 120), (33, 129)]
"""(width, height) in pixels: upright, square, wide, and smaller than a patch or a tile of some families."""
COLOURS = ("red", "blue", "green", "black", "white", "yellow")


def write(folder: Path, *, several: bool = True, without: bool = True, turns: bool = True) -> tuple[Path, Path]:
    """Write records to train on and records to hold out, with their pictures beside them.

    Args:
        several: whether one record has two pictures.
        without: whether one record has no picture.
        turns: whether records may have two turns.
    """
    folder.mkdir(parents=True, exist_ok=True)
    names = [picture(folder, number, size) for number, size in enumerate(SIZES)]
    rows = [
        record(f"one-{number}", [name], [("What colour is the square?", COLOURS[number])])
        for number, name in enumerate(names)
    ]
    said = [("What colour is the square?", "red"), ("And the circle?", "It is blue, the square is red.")]
    rows.append(record("turns", names[:1], said if turns else said[1:]))
    if several:
        rows.append(record("two", names[1:3], [("Which of the two pictures shows more shapes?", "the first one")]))
    if without:
        said = [("Is red a colour?", "yes"), ("Is a circle one?", "no")]
        rows.append(record("none", [], said if turns else said[:1]))
    held_out = [
        record(f"held-{number}", [name], [("Is there a circle?", "yes" if number % 2 else "no")])
        for number, name in enumerate(names[:3])
    ]
    paths = folder / "train.jsonl", folder / "held_out.jsonl"
    for path, chosen in zip(paths, (rows, held_out), strict=True):
        write_records(path, chosen)
    return paths


def picture(folder: Path, number: int, size: tuple[int, int]) -> str:
    """Draw a picture of a size; gives its file name."""
    noise = np.random.default_rng(number).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    drawn = Image.fromarray(noise)
    ImageDraw.Draw(drawn).rectangle([2, 2, size[0] // 2, size[1] // 2], fill=COLOURS[number % len(COLOURS)])
    drawn.save(folder / f"{number}.png")
    return f"{number}.png"


def record(name: str, images: list[str], turns: list[tuple[str, str]]) -> dict[str, Any]:
    """A record whose pictures all stand before the first question."""
    messages: list[dict[str, Any]] = []
    for question, answer in turns:
        content = [{"type": "image"} for _ in images] if not messages else []
        messages.append({"role": "user", "content": [*content, {"type": "text", "text": question}]})
        messages.append({"role": "assistant", "content": [{"type": "text", "text": answer}]})
    return {"id": name, "messages": messages, "images": images}
