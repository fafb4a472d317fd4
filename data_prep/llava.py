"""LLaVA-Instruct (Liu et al., 2023): conversations about images, 150k and mix665k, and what follows their layout.

A JSON list of `{id, image?, conversations: [{from: human|gpt, value}]}`; `<image>` in a value marks
the image. Rows without `image` are text only. mix665k repeats ids (one COCO image, many
conversations), so they are counted, not refused. Image paths start at one root, as in
`coco/train2017/000000033471.jpg`.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from mmdora.prepare.inputs import ImageInputs
from mmdora.prepare.read import Reader, Row
from mmdora.prepare.run import run
from mmdora.records.llava_json import to_record
from mmdora.records.record import Record

NAME = "llava"
LICENCE = "CC BY 4.0, OpenAI's terms (answers by GPT); images under their own"
SOURCE = "https://github.com/haotian-liu/LLaVA docs/Data.md, docs/Finetune_Custom_Data.md, llava/train/train.py"
UNVERIFIED = ()


def prepare(out: Path, *, inputs: ImageInputs) -> dict[str, int]:
    """LLaVA's instruction files: llava_instruct_150k.json, llava_v1_5_mix665k.json, or your own in their layout.

    Example: `mmdora prep llava --in llava_v1_5_mix665k.json --images DIR --out data/llava`

    Parameters
    ----------
    out
        Folder for train.jsonl, dataset_card.json and report.html.
    """
    return run(out, __name__, inputs, rows, records, unique=False, split="train")


def rows(read: Reader, files: list[Path]) -> Iterator[Row]:
    for path in files:
        yield from read.rows(path)


def records(row: Row) -> Iterator[Record]:
    yield to_record(row.value, f"row {row.number}") | {"meta": {"id": row.value.get("id", row.number)}}
