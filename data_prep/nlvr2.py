"""NLVR2 (Suhr et al., 2019): a sentence that is true or false of two photographs.

The files are JSON Lines, though they are named .json, of `{sentence, label: "True"|"False", identifier:
split-set-pair-sentence, left_url, right_url, directory?, writer, validation, synset, query …}`. Images are
`split-set-pair-img0.png` (left) and `-img1.png`, some of which are JPEG or GIF; they lie below the root directly, in
`dev/` or `test1/`, or for training in `train/DIRECTORY/`. URLs are never fetched. The result file is CSV,
`identifier,prediction`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from mmdora.errors import MmdoraError
from mmdora.prepare.dataset import Dataset, OfficialFiles, Origin, ResultFile
from mmdora.prepare.inputs import ImageInputs
from mmdora.prepare.read import OfficialRow
from mmdora.prepare.record import RecordDraft, asked
from mmdora.prepare.results import answered, write_csv
from mmdora.prepare.rows import json_lines
from mmdora.records.record import RecordFacts


def records(row: OfficialRow) -> Iterator[RecordDraft]:
    value = row.value
    split, group, pair, _ = value["identifier"].split("-")
    folder = f"{split}/{value['directory']}" if "directory" in value else split
    names = [f"{split}-{group}-{pair}-img{side}.png" for side in (0, 1)]
    label = value.get("label")
    if label is not None and str(label).lower() not in ("true", "false"):
        raise MmdoraError(f"the label {label!r} is neither True nor False")
    yield asked(
        value["identifier"],
        [(f"{folder}/{name}", f"images/{folder}/{name}", name) for name in names],
        value["sentence"],
        None if label is None else str(label).lower(),
        identifier=value["identifier"],
        synset=value.get("synset"),
    )


def write_results(records: Iterable[RecordFacts], predictions: Mapping[str, str], path: Path) -> Path:
    """Write CSV of `identifier,True|False`, which `metrics.py` reads; other texts stay as they are and are wrong."""
    said = {"true": "True", "yes": "True", "false": "False", "no": "False"}
    rows = (
        (meta["identifier"], said.get(text.rstrip(".").lower(), text.replace(",", " ")))
        for meta, text in answered(records, predictions)
    )
    return write_csv(path, rows)


DATASET = Dataset(
    name="nlvr2",
    summary="NLVR2: a sentence that is true or false of two photographs",
    details="Give train.json, dev.json, test1.json or test2.json; a sentence has two images.",
    example="--in dev.json --images nlvr2/images --out data/nlvr2",
    origin=Origin(
        licence="CC BY 4.0 (text); photographs belong to their owners",
        source="https://github.com/lil-lab/nlvr nlvr2/README.md (fields, image names), nlvr2/eval/metrics.py (result)",
        unverified=(
            "the folders of the image release (train/DIRECTORY, dev, test1) and the field directory",
            "the licence: no statement of its owners was at hand",
        ),
    ),
    files=OfficialFiles(ImageInputs, json_lines, records),
    results=ResultFile("results.csv", write_results),
)
