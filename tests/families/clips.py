"""Records about videos, for families whose processor takes them: folders of frames of two sizes and lengths."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mmdora.records.reader import write_records
from mmdora.records.record import Record

CLIPS = (("rain", 5, (40, 30)), ("snow", 12, (90, 64)))
"""Name of a folder, number of its frames, and their (width, height)."""
FRAMES = 4
"""Frames that are shown: as many of each video, because some models want it so."""


def write(path: Path) -> None:
    """Write a record for each video, with the frames beside it."""
    records: list[Record] = []
    for number, (name, count, size) in enumerate(CLIPS):
        folder = path.parent / name
        folder.mkdir()
        for frame in range(count):
            noise = np.random.default_rng([number, frame]).integers(0, 255, (*size[::-1], 3), dtype=np.uint8)
            Image.fromarray(noise).save(folder / f"{frame}.png")
        part: dict[str, Any] = {"type": "video", "frames": FRAMES, "fps": 2.5}
        question, answer = {"type": "text", "text": "What falls?"}, {"type": "text", "text": name}
        messages: Any = [{"role": "user", "content": [part, question]}, {"role": "assistant", "content": [answer]}]
        records.append({"id": f"video-{name}", "messages": messages, "images": [], "videos": [name], "meta": {}})
    write_records(path, records)
