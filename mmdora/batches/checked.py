"""Checks every row of a training set before a run: its images exist, lie below the root, and have a usable size."""

from __future__ import annotations

import hashlib
from functools import partial

import numpy as np

from mmdora.batches.lengths import kept
from mmdora.families import Family
from mmdora.families.family import naming
from mmdora.records.images import FileRef, image_size
from mmdora.records.reader import Records
from mmdora.records.row import Row


def check_rows(records: Records, family: Family) -> None:
    """Render every row and read the header of every image once, on all cores.

    The result is kept beside the records' table, so that the next run on unchanged records skips the check.

    Raises:
        MmdoraError: if the family cannot learn a record, if an image is missing, outside the root, unusable or left out
            by the chat template, or if features are missing. The message names the first such record.
    """
    template = getattr(family.processor, "chat_template", None)
    depends = f"{records.root.resolve()}\0{family.placeholder}\0{type(family).__name__}\0{template}"
    name = hashlib.sha256(depends.encode()).hexdigest()[:16]
    kept(records, f"images-{name}", np.arange(len(records)), partial(_megapixels, family))


def _megapixels(family: Family, rows: list[Row]) -> np.ndarray:
    """[rows] float32: the megapixels of all images of each row together."""
    sizes: dict[FileRef, tuple[int, int]] = {}
    for row in rows:
        with naming(row):
            family.check_row(row)
            family.check_pictures(row["messages"], len(row["images"]))
            if row["features"] is not None:
                _ = row["features"].path
            sizes |= {image: image_size(image) for image in row["images"] if image not in sizes}
    totals = [sum(sizes[image][0] * sizes[image][1] for image in row["images"]) for row in rows]
    return np.array(totals, dtype=np.float32) / 1e6
