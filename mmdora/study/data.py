"""The fixed splits of a task: train, and by picture two halves of what is held out, one of them to choose rates by."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from random import Random

from filelock import FileLock

from mmdora.errors import MmdoraError
from mmdora.files import read_json, sha256, write_json
from mmdora.records.images import image_bytes
from mmdora.records.reader import Records, read_records, write_records
from mmdora.records.row import Row, videos_of
from mmdora.records.videos import digest
from mmdora.study.tasks import StudyTask

SPLITS = ("train", "validation", "test")
FACTS = "splits.json"


@dataclass(frozen=True)
class Splits:
    """The files of a task's splits.

    Attributes:
        folder: holds train.jsonl, validation.jsonl and test.jsonl.
        root: folder that the paths of their images start from.
        digest: SHA-256 over the three files.
        questions_per_picture: [pictures] numbers of questions about the pictures of the test split, in its order.
    """

    folder: Path
    root: Path
    digest: str
    questions_per_picture: list[int]

    def file(self, split: str) -> Path:
        return self.folder / f"{split}.jsonl"

    def records(self, split: str) -> Records:
        return read_records(self.file(split), self.root)


def splits_of(task: StudyTask, out: Path) -> Splits:
    """The splits of a task below a study's folder; the first of several processes makes them, the others wait."""
    raw, folder = out / "data" / task.data, out / "splits" / task.name
    for path in (raw.parent, folder):
        path.mkdir(parents=True, exist_ok=True)
    if not (folder / FACTS).is_file():
        with FileLock(raw.parent / f".{task.data}.lock"):
            if not (raw / "test.jsonl").is_file():
                task.prepare(raw)
            train, held_out = read_records(raw / "train.jsonl", max_turns=1), read_records(raw / "test.jsonl")
            if not (folder / FACTS).is_file():
                write_splits(task, train, held_out, folder)
    return opened(folder)


def opened(folder: Path) -> Splits:
    """The splits that `write_splits` wrote."""
    facts = read_json(folder / FACTS, "list of splits")
    return Splits(folder, Path(facts["root"]), facts["digest"], facts["questions_per_picture"])


def write_splits(task: StudyTask, train: Records, held_out: Iterable[Row], folder: Path) -> None:
    """Write the three files and what is known of them.

    The training records are drawn by a fixed seed. Of the held-out pictures a hash of their content says which half
    they belong to, so no picture is in both, and equal pictures are one picture.

    Raises:
        MmdoraError: the pictures are inside packed records; or a split is empty.
    """
    order = list(range(len(train)))
    Random(0).shuffle(order)
    chosen = (row for row in map(train.__getitem__, order) if task.asks(row))
    files: dict[str, list[Row]] = {"train": [row for row, _ in zip(chosen, range(task.rows), strict=False)]}
    halves: dict[str, dict[str, list[Row]]] = {"validation": {}, "test": {}}
    for row in held_out:
        if task.asks(row):
            picture = picture_of(row)
            halves["test" if int(picture, 16) % 2 else "validation"].setdefault(picture, []).append(row)
    counts = []
    for split, by_picture in halves.items():
        kept = sorted(by_picture)[: task.pictures if split == "test" else task.validation_pictures]
        files[split] = [row for picture in kept for row in by_picture[picture]]
        counts = [len(by_picture[picture]) for picture in kept]  # in the end those of the test split
    for split, rows in files.items():
        if not rows:
            raise MmdoraError(f"{train.path}: too few pictures: the split {split} would be empty")
        write_records(folder / f"{split}.jsonl", map(_record, rows))
    digest = sha256(" ".join(sha256(folder / f"{split}.jsonl") for split in SPLITS).encode())
    facts = {"root": str(train.root.absolute()), "digest": digest, "questions_per_picture": counts}
    write_json(folder / FACTS, facts)


def picture_of(row: Row) -> str:
    """A hash of the contents of a row's pictures and videos; of its text, if it has none."""
    hashes = [sha256(image_bytes(image)[0]) for image in row["images"]] + list(map(digest, videos_of(row)))
    return sha256((" ".join(hashes) if hashes else json.dumps(row["messages"])).encode())


def _record(row: Row) -> dict[str, object]:
    if any(image.data is not None for image in row["images"]):
        raise MmdoraError(f"record {row['id']}: its pictures are packed into the records; a study needs them as files")
    names = [image.name for image in row["images"]]
    videos = {"videos": [video.name for video in videos_of(row)]} if videos_of(row) else {}
    return {"id": row["id"], "messages": row["messages"], "images": names, **videos, "meta": row["meta"]}
