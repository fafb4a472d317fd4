"""Every row of a set looked at before a run: its images there, below the root, a picture of a size that can be used."""

from __future__ import annotations

import hashlib
from functools import partial
from pathlib import Path

import numpy as np

from mmdora.batches.lengths import kept
from mmdora.batches.prompt import check_one_answer, check_texts
from mmdora.errors import MmdoraError
from mmdora.records.images import image_size, locate
from mmdora.records.reader import Records
from mmdora.records.record import Record


def check_rows(records: Records, mark: str | None, *, one_answer: bool = False) -> None:
    """Read the header of every image, on every core, once; that it was done is kept beside the records' table.

    Args:
        mark: the processor's image placeholder, which no text may hold.
        one_answer: whether a record may have no more than one, as an encoder-decoder learns.

    Raises:
        MmdoraError: naming the first record with the placeholder in its text, with an image that is missing, outside
            the root or no usable picture, or with features that are missing.
    """
    depends = hashlib.sha256(f"{records.root.resolve()}\0{mark}\0{one_answer}".encode()).hexdigest()[:16]
    measure = partial(_megapixels, records.root, mark, one_answer)
    kept(records, f"images-{depends}", np.arange(len(records)), measure)


def _megapixels(root: Path, mark: str | None, one_answer: bool, records: list[Record]) -> np.ndarray:
    """[records] float32: of each record's images together."""
    sizes: dict[str, tuple[int, int]] = {}
    for record in records:
        try:
            check_texts(record["messages"], mark)
            if one_answer:
                check_one_answer(record)
            if "features" in record["meta"]:
                locate(record["meta"]["features"], root)
            sizes |= {name: image_size(name, root) for name in record["images"] if name not in sizes}
        except MmdoraError as error:
            raise MmdoraError(f"record {record['id']}: {error}") from None
    totals = [sum(sizes[name][0] * sizes[name][1] for name in record["images"]) for record in records]
    return np.array(totals, dtype=np.float32) / 1e6
