"""RefCOCO, RefCOCO+ and RefCOCOg (Yu et al., 2016; Mao et al., 2016): where the thing is that a phrase describes.

The files are the JSON Lines in which Qwen-VL's and InternVL's evaluations take them, `refcoco_val.jsonl`,
`refcoco+_testA.jsonl`, `refcocog_test.jsonl` and so on: `{image, sent, bbox, width, height}`, with `bbox` as left, top,
right and bottom in pixels of the image. The file's name tells the split. `image` is a path that ends in
`train2014/COCO_train2014_….jpg`; images are COCO's train2014, below the root directly or in `train2014/`.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import PurePosixPath

from mmdora.errors import MmdoraError
from mmdora.prepare.dataset import Dataset, OfficialFiles, Origin
from mmdora.prepare.inputs import ImageInputs
from mmdora.prepare.read import OfficialRow
from mmdora.prepare.record import RecordDraft, asked
from mmdora.prepare.rows import json_lines

QUESTION = "Please provide the bounding box coordinate of the region this sentence describes: {}"
"""The words of LLaVA-1.5's training data and of InternVL's evaluation."""


def records(row: OfficialRow) -> Iterator[RecordDraft]:
    value = row.value
    left, top, right, bottom = map(float, value["bbox"])
    if not (0 <= left < right <= value["width"] + 1 and 0 <= top < bottom <= value["height"] + 1):
        picture = f"{value['width']} x {value['height']}"
        raise MmdoraError(f"bbox {value['bbox']} is not left, top, right and bottom in a picture of {picture}")
    name = PurePosixPath(value["image"]).name
    record = asked(
        f"{row.file.stem}-{row.number}",
        [(value["image"], name, f"train2014/{name}")],
        QUESTION.format(value["sent"].strip()),
        f"<box>{left:g}, {top:g}, {right:g}, {bottom:g}</box>",
        boxes_in="pixels",
        sent=value["sent"],
    )
    yield {**record, "split": row.file.stem.rpartition("_")[2]}


DATASET = Dataset(
    name="refcoco",
    summary="RefCOCO, RefCOCO+, RefCOCOg: where something is",
    details="Give its JSON Lines; each split becomes a file. Boxes are written as each model's family writes them.",
    example="--in refcoco_val.jsonl refcoco_testA.jsonl refcoco_testB.jsonl --images coco --out data/refcoco",
    origin=Origin(
        licence="not stated; images: COCO's terms of use",
        source="https://github.com/QwenLM/Qwen-VL eval_mm/evaluate_grounding.py (fields, IoU)",
        unverified=("the paths of the images in the files of RefCOCO+ and RefCOCOg",),
    ),
    files=OfficialFiles(ImageInputs, json_lines, records),
)
