"""NLVR2 (Suhr et al., 2019): a sentence that is true or false of two photographs.

JSON Lines (though named .json): `{sentence, label: "True"|"False", identifier: split-set-pair-sentence,
left_url, right_url, directory?, writer, validation, synset, query …}`. Images: `split-set-pair-img0.png`
(left) and `-img1.png`, some of which are JPEG or GIF; below the root directly, in `dev/` or `test1/`, or for
training in `train/DIRECTORY/`. URLs are never fetched. Result: CSV lines `identifier,prediction`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from mmdora.errors import MmdoraError
from mmdora.prepare.inputs import ImageInputs
from mmdora.prepare.read import Reader, Row
from mmdora.prepare.record import asked
from mmdora.prepare.results import answered, write_csv
from mmdora.prepare.run import run
from mmdora.records.record import Record

NAME = "nlvr2"
LICENCE = "CC BY 4.0 (text); photographs belong to their owners"
SOURCE = "https://github.com/lil-lab/nlvr nlvr2/README.md (fields, image names), nlvr2/eval/metrics.py (result)"
UNVERIFIED = (
    "the folders of the image release (train/DIRECTORY, dev, test1) and the field directory",
    "the licence: no statement of its owners was at hand",
)


def prepare(out: Path, *, inputs: ImageInputs) -> dict[str, int]:
    """NLVR2: train.json, dev.json, test1.json, test2.json, with two images a sentence.

    Example: `mmdora prep nlvr2 --in dev.json --images nlvr2/images --out data/nlvr2`

    Parameters
    ----------
    out
        Folder for a file per split, dataset_card.json and report.html.
    """
    return run(out, __name__, inputs, rows, records)


def rows(read: Reader, files: list[Path]) -> Iterator[Row]:
    for path in files:
        yield from read.lines(path)


def records(row: Row) -> Iterator[Record]:
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


def write_results(records: Iterable[Record], predictions: Mapping[str, str], path: Path) -> Path:
    """CSV of `identifier,True|False`, what `metrics.py` takes; other texts go in as they are and count as wrong."""
    said = {"true": "True", "yes": "True", "false": "False", "no": "False"}
    rows = (
        (meta["identifier"], said.get(text.rstrip(".").lower(), text.replace(",", " ")))
        for meta, text in answered(records, predictions)
    )
    return write_csv(path, rows)
