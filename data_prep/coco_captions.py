"""COCO captions (Chen et al., 2015), from the official files or Karpathy's splits.

An official file is `{images: [{id, file_name, …}], annotations: [{id, image_id, caption}]}`; those of test sets have
images only. Karpathy's `dataset_coco.json` is `{images: [{filepath, filename, cocoid, split, sentences: [{raw, tokens,
sentid}]}]}` with the splits train, restval, val and test; restval goes to train, as is usual. In the split train every
caption is a record of its own. Elsewhere an image is one record, with its first caption as the answer and all of them
in `meta.references`. Images are `train2014/COCO_….jpg` (or `train2017/….jpg`) below the root, or lie there without
the folder. The result file is `[{image_id, caption}]`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from mmdora.errors import MmdoraError
from mmdora.prepare.dataset import Dataset, OfficialFiles, Origin, ResultFile
from mmdora.prepare.inputs import ImageInputs
from mmdora.prepare.joins import field, images_with_captions
from mmdora.prepare.read import OfficialRow, Reader, split_of
from mmdora.prepare.record import RecordDraft, captioned
from mmdora.prepare.results import answered, write_json_list
from mmdora.records.record import RecordFacts

PROMPT = "Provide a one-sentence caption for the provided image."
"""LLaVA-1.5 asks for captions in these words."""


def rows(reader: Reader, inputs: ImageInputs) -> Iterator[OfficialRow]:
    """Yield (image, its captions) from an official file, or an image with its sentences from Karpathy's file."""
    for path in inputs.files:
        first = next(iter(reader.elements(path, "images")), None)
        if first is not None and field(first.value, "sentences") is not None:
            yield from reader.elements(path, "images")
        else:
            yield from images_with_captions(reader, path)


def records(row: OfficialRow) -> Iterator[RecordDraft]:
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
        yield {**record, "split": split} if split else record


def write_results(records: Iterable[RecordFacts], predictions: Mapping[str, str], path: Path) -> Path:
    """Write `[{image_id, caption}]`, which coco-caption and the server read."""
    return write_json_list(
        path, ({"image_id": m["image_id"], "caption": text} for m, text in answered(records, predictions))
    )


DATASET = Dataset(
    name="coco-captions",
    summary="COCO captions: official files, or Karpathy's splits",
    details="Give captions_train2014.json and its like, or Karpathy's dataset_coco.json.",
    example="--in dataset_coco.json --images coco --out data/coco",
    origin=Origin(
        licence="CC BY 4.0 (captions); images: COCO's terms of use",
        source="https://cocodataset.org/#format-data; karpathy/neuraltalk2 coco/coco_preprocess.ipynb, prepro.py",
        unverified=("the licence: no statement of its owners was at hand",),
    ),
    files=OfficialFiles(ImageInputs, rows, records),
    results=ResultFile("results.json", write_results),
)
