"""The hub's chat layout: `messages` with `images`, as TRL and others train on; JSONL, Parquet, or a dataset's folder.

A row has `messages: [{role: system|user|assistant, content}]`. The content is a text, in which `<image>` marks an
image, or a list of parts `{type: image}`, `{type: video}` and `{type: text, text}`; fields that `datasets` filled with
None are left out. `images` is a list (`image` a single one) of paths, or of `{bytes, path}` as Parquet stores them;
files with bytes need no `--images`. `videos` is a list of paths of files or folders of frames below `--images`; a part
may name its video itself (`{type: video, video: PATH, frames: N, fps: F}`). From a folder, every .parquet, .jsonl and
.json file below it is read, and the name of the file or of its folder tells the split
(`data/train-00000-of-00002.parquet`, `test/0.jsonl`).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from mmdora.errors import MmdoraError
from mmdora.prepare.dataset import Dataset, OfficialFiles, Origin
from mmdora.prepare.inputs import OwnInputs
from mmdora.prepare.read import OfficialRow, Reader, split_of
from mmdora.prepare.record import Picture, RecordDraft, conversation
from mmdora.records.images import locate
from mmdora.records.media import check_keys


def rows(reader: Reader, inputs: OwnInputs) -> Iterator[OfficialRow]:
    for path in inputs.files:
        parts = [path]
        if path.is_dir():
            names = [part.relative_to(path) for part in sorted(path.rglob("*")) if not part.is_dir()]
            parts = [locate(str(name), path) for name in names if name.suffix in (".parquet", ".jsonl", ".json")]
            if not parts:
                raise MmdoraError(f"{path}: no .parquet, .jsonl or .json file below it")
        for part in parts:
            yield from reader.rows(part)


def records(row: OfficialRow) -> Iterator[RecordDraft]:
    value = row.value
    keys = ("id", "messages", "images", "image", "videos", "video")
    check_keys(value, keys, ("images", "image"), videos=("videos", "video"))
    pictures = value.get("images") or value.get("image") or []
    pictures = pictures if isinstance(pictures, list) else [pictures]
    name = value.get("id", f"{row.file.stem}-{row.number}")
    chat = value["messages"]
    chat = json.loads(chat) if isinstance(chat, str) else chat  # Parquet stores a column of JSON as text.
    videos = value.get("videos") or value.get("video") or []
    videos = videos if isinstance(videos, list) else [videos]
    record = conversation(name, chat, [_picture(picture) for picture in pictures], [_video(video) for video in videos])
    split = split_of(row.file) or split_of(row.file.parent)
    yield {**record, "split": split} if split else record


def _picture(value: Any) -> Picture:
    if isinstance(value, dict):
        return value["bytes"] if value.get("bytes") is not None else value["path"]
    return value


def _video(value: Any) -> str:
    """The path of a video; `datasets` stores one as {bytes, path}."""
    if isinstance(value, dict):
        if value.get("bytes") is not None:
            raise MmdoraError("holds the bytes of a video; save it as a file, and give its path")
        return value["path"]
    return value


DATASET = Dataset(
    name="messages",
    summary="Chats of the hub: messages with images",
    details="Give .jsonl, .json or .parquet files, or the folder of a downloaded dataset.",
    example="--in downloaded/dataset --out data/chat",
    origin=Origin(
        licence="that of the data at hand",
        owned=(),
        source=(
            "https://huggingface.co/docs/trl/dataset_formats, "
            "https://huggingface.co/docs/hub/datasets-file-names-and-splits"
        ),
        unverified=("data_files in a dataset's README.md are not read: name the files with --in where it has them",),
    ),
    files=OfficialFiles(OwnInputs, rows, records, unique_ids=False, split="train"),
)
