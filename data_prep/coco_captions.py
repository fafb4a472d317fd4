"""COCO captions (Chen et al., 2015), the official files and Karpathy's splits.

Official: `{images: [{id, file_name, …}], annotations: [{id, image_id, caption}]}`; test files have
images only. Karpathy's `dataset_coco.json`: `{images: [{filepath, filename, cocoid, split,
sentences: [{raw, tokens, sentid}]}]}` with the splits train, restval, val, test; restval goes to train,
as is usual. To train, every caption is a record of its own; elsewhere an image is one, its first
caption the answer and all of them in `meta.references`. Images: `train2014/COCO_….jpg` (or
`train2017/….jpg`) below the root, or without the folder. Result: `[{image_id, caption}]`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from mmdora.errors import MmdoraError
from mmdora.prepare.inputs import ImageInputs
from mmdora.prepare.joins import field, images_with_captions
from mmdora.prepare.read import Reader, Row
from mmdora.prepare.record import captioned
from mmdora.prepare.results import answered, write_json
from mmdora.prepare.run import run
from mmdora.prepare.writer import split_of
from mmdora.records.record import Record

NAME = "coco-captions"
LICENCE = "CC BY 4.0 (captions); images: COCO's terms of use"
SOURCE = "https://cocodataset.org/#format-data; karpathy/neuraltalk2 coco/coco_preprocess.ipynb, prepro.py"
UNVERIFIED = ("the licence: no statement of its owners was at hand",)

PROMPT = "Provide a one-sentence caption for the provided image."  # LLaVA-1.5's for captions


def prepare(out: Path, *, inputs: ImageInputs) -> dict[str, int]:
    """COCO captions: captions_train2014.json and its like, or Karpathy's dataset_coco.json.

    Example: `mmdora prep coco-captions --in dataset_coco.json --images coco --out data/coco`

    Parameters
    ----------
    out
        Folder for a file per split, dataset_card.json and report.html.
    """
    return run(out, __name__, inputs, rows, records)


def rows(read: Reader, files: list[Path]) -> Iterator[Row]:
    """(image, its captions), or an image with its sentences."""
    for path in files:
        first = next(iter(read.elements(path, "images")), None)
        if first is not None and field(first.value, "sentences") is not None:
            yield from read.elements(path, "images")
        else:
            yield from images_with_captions(read, path)


def records(row: Row) -> Iterator[Record]:
    if isinstance(row.value, dict):
        image, split = row.value, row.value["split"]
        name, number = f"{image['filepath']}/{image['filename']}", image["cocoid"]
        captions = [(sentence["sentid"], sentence["raw"]) for sentence in image["sentences"]]
        meta = {"karpathy_split": split}
        split = "train" if split == "restval" else split
    else:
        (image, notes), split, meta = row.value, split_of(row.file), {}
        folder = re.search(r"(train|val|test)20\d\d", row.file.name)
        name, number = f"{folder[0]}/{image['file_name']}" if folder else image["file_name"], image["id"]
        captions = [(note["id"], note["caption"]) for note in notes or []]
        if notes == []:
            raise MmdoraError(f"image {number} has no caption")
    picture = (name, Path(name).name)
    for record in captioned(number, [picture], PROMPT, captions, split, image_id=number, **meta):
        yield record | ({"split": split} if split else {})


def write_results(records: Iterable[Record], predictions: Mapping[str, str], path: Path) -> Path:
    """`[{image_id, caption}]`, what coco-caption and the server take."""
    return write_json(
        path, ({"image_id": m["image_id"], "caption": text} for m, text in answered(records, predictions))
    )
