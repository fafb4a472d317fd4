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
    """Render every row and read the header of every image, on every core, once.

    That it was done is kept beside the records' table.

    Raises:
        MmdoraError: naming the first record that the family cannot learn, with an image that the chat template leaves
            out, that is missing, outside the root or no usable picture, or with features that are missing.
    """
    template = getattr(family.processor, "chat_template", None)
    depends = f"{records.root.resolve()}\0{family.placeholder}\0{type(family).__name__}\0{template}"
    name = hashlib.sha256(depends.encode()).hexdigest()[:16]
    kept(records, f"images-{name}", np.arange(len(records)), partial(_megapixels, family))


def _megapixels(family: Family, rows: list[Row]) -> np.ndarray:
    """[rows] float32: megapixels of each row's images, summed."""
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
