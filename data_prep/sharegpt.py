"""ShareGPT's layout with images: `conversations` (or `messages`), `images`, `system`.

`{conversations: [{from, value}], images: [path, …], system?}` with the speakers human, gpt and
system; `<image>` in a value marks each image. `{role, content}` in place of `{from, value}` is
read too, and `image` in place of `images`. Tool calls (observation, function_call) are bad rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from mmdora.prepare.inputs import ImageInputs
from mmdora.prepare.read import Reader, Row
from mmdora.prepare.run import run
from mmdora.records.llava_json import to_record
from mmdora.records.record import Record

NAME = "sharegpt"
LICENCE = "that of the data at hand"
SOURCE = "https://github.com/hiyouga/LLaMA-Factory data/README.md (sharegpt and multimodal formats)"
UNVERIFIED = ()


def prepare(out: Path, *, inputs: ImageInputs) -> dict[str, int]:
    """ShareGPT-style conversations with images, as LLaMA-Factory and others read them (.json, .jsonl, .parquet).

    Example: `mmdora prep sharegpt --in mllm_demo.json --images DIR --out data/demo`

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
    value = row.value
    turns = [_turn(turn) for turn in value.get("conversations") or value["messages"]]
    if value.get("system"):
        turns.insert(0, {"from": "system", "value": value["system"]})
    name = value.get("id", f"{row.file.stem}-{row.number}")
    images = value.get("images") or value.get("image") or []
    record = to_record({"id": name, "image": images, "conversations": turns}, f"row {row.number}")
    yield record | {"meta": {"id": name}}


def _turn(turn: dict[str, str]) -> dict[str, str]:
    return turn if "from" in turn else {"from": turn["role"], "value": turn["content"]}
