"""The hub's chat layout: `messages` with `images`, as TRL and others train on; JSONL, Parquet, or a dataset's folder.

`messages: [{role: system|user|assistant, content}]` with content a text (`<image>` marks an image) or
a list of parts `{type: image}`, `{type: text, text}`; fields that `datasets` fills with None are
left out. `images` is a list (`image` a single one) of paths or of `{bytes, path}` as Parquet stores them:
files with bytes need no `--images`. Of a folder every .parquet, .jsonl and .json file below it is
read, and its split is told by its name or its folder (`data/train-00000-of-00002.parquet`,
`test/0.jsonl`).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mmdora.errors import MmdoraError
from mmdora.prepare.inputs import ImageInputs
from mmdora.prepare.read import Reader, Row
from mmdora.prepare.record import Picture, conversation
from mmdora.prepare.run import run
from mmdora.prepare.writer import split_of
from mmdora.records.images import locate
from mmdora.records.record import Record

NAME = "messages"
LICENCE = "that of the data at hand"
SOURCE = (
    "https://huggingface.co/docs/trl/dataset_formats, https://huggingface.co/docs/hub/datasets-file-names-and-splits"
)
UNVERIFIED = ("data_files in a dataset's README.md are not read: name the files with --in where it has them",)


def prepare(out: Path, *, inputs: ImageInputs) -> dict[str, int]:
    """Chats of the hub (messages + images): .jsonl, .json, .parquet, or a downloaded dataset's folder.

    Example: `mmdora prep messages --in downloaded/dataset --out data/chat`

    Parameters
    ----------
    out
        Folder for a file per split, dataset_card.json and report.html.
    """
    return run(out, __name__, inputs, rows, records, unique=False, split="train")


def rows(read: Reader, files: list[Path]) -> Iterator[Row]:
    for path in files:
        parts = [path]
        if path.is_dir():
            names = [part.relative_to(path) for part in sorted(path.rglob("*")) if not part.is_dir()]
            parts = [locate(str(name), path) for name in names if name.suffix in (".parquet", ".jsonl", ".json")]
            if not parts:
                raise MmdoraError(f"{path}: no .parquet, .jsonl or .json file below it")
        for part in parts:
            yield from read.rows(part)


def records(row: Row) -> Iterator[Record]:
    value = row.value
    pictures = value.get("images") or value.get("image") or []
    pictures = pictures if isinstance(pictures, list) else [pictures]
    name = value.get("id", f"{row.file.stem}-{row.number}")
    chat = value["messages"]
    chat = json.loads(chat) if isinstance(chat, str) else chat  # as Parquet keeps a column of JSON
    record = conversation(name, chat, [_picture(picture) for picture in pictures], id=name)
    split = split_of(row.file) or split_of(row.file.parent)
    yield record | ({"split": split} if split else {})


def _picture(value: Any) -> Picture:
    if isinstance(value, dict):
        return value["bytes"] if value.get("bytes") is not None else value["path"]
    return value
