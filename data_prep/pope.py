"""POPE (Li et al., 2023): is there such a thing in the image? yes or no, in three splits.

JSON Lines (named .json): `{question_id, image, text, label: yes|no}`; `coco_pope_random.json`,
`_popular`, `_adversarial` name the splits. Ids repeat from split to split. Images: COCO's val2014, below
the root directly or in `val2014/`. Result: JSON Lines `{question, answer}` in the order of the questions.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from mmdora.errors import MmdoraError
from mmdora.prepare.inputs import ImageInputs
from mmdora.prepare.read import Reader, Row
from mmdora.prepare.record import asked
from mmdora.prepare.results import answered, write_jsonl
from mmdora.prepare.run import run
from mmdora.records.record import Record

NAME = "pope"
LICENCE = "MIT; images: COCO's terms of use"
SOURCE = "https://github.com/AoiDragon/POPE README.md (fields), evaluate.py (result)"
UNVERIFIED = ()


def prepare(out: Path, *, inputs: ImageInputs) -> dict[str, int]:
    """POPE's question files; random, popular and adversarial become a file each.

    Example: `mmdora prep pope --in coco_pope_random.json coco_pope_popular.json coco_pope_adversarial.json
    --images coco/val2014 --out data/pope`

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
    if value["label"] not in ("yes", "no"):
        raise MmdoraError(f"the label {value['label']!r} is neither yes nor no")
    strategy = row.file.stem.rpartition("_")[2]
    yield asked(
        f"{strategy}-{value['question_id']}",
        [(value["image"], f"val2014/{value['image']}")],
        value["text"],
        value["label"],
        question_id=value["question_id"],
        question=value["text"],
        type=strategy,
    ) | {"split": strategy}


def write_results(records: Iterable[Record], predictions: Mapping[str, str], path: Path) -> Path:
    """JSON Lines of `{question, answer}`, what `evaluate.py` takes for one split."""
    rows = ({"question": meta["question"], "answer": text} for meta, text in answered(records, predictions))
    return write_jsonl(path, rows)
