"""Finds the records of a task: in a file of records, or in a folder that `mmdora prep` wrote."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path

from mmdora.errors import MmdoraError
from mmdora.evaluate.tasks import TASKS, Task, task_of
from mmdora.records import card
from mmdora.records.reader import Records, read_records
from mmdora.records.row import Row


@dataclass(frozen=True)
class TaskRecords:
    """The records of one split of a task."""

    task: Task
    records: Records | list[Row]
    split: str

    @property
    def name(self) -> str:
        """The name of the task, and of the split unless it is the one that papers report."""
        return self.task.name if self.split == self.task.splits[0] else f"{self.task.name}-{self.split}"


def find(data: Path, task: str | None = None, *, split: str | None = None, images: Path | None = None) -> TaskRecords:
    """Find the records in `data`.

    Args:
        data: a file of records, or a folder with `dataset_card.json`.
        task: name of the task; by default the one that the card names, or else `exact`.
        split: split of a folder; by default the first of the task's splits that exists.
        images: root of the image paths; by default the one in the card, or else the file's folder.

    Raises:
        MmdoraError: if there is nothing to read; the message names the splits that exist.
    """
    folder = data if data.is_dir() else data.parent
    facts = card.read(folder)
    chosen = task_of(task or _named(facts) or "exact")
    if data.is_dir():
        if not facts:
            raise MmdoraError(f"{data}: no {card.CARD}; make the records with `mmdora prep`, or name a file of records")
        names = _splits(data, facts["splits"], chosen, split)
    else:
        if split is not None:
            raise MmdoraError(f"--split {split}: {data} is a file; name its folder")
        names = [name for name, entry in facts.get("splits", {}).items() if entry["file"] == data.name]
    entries = [facts["splits"][name] for name in names] or [{"file": data.name}]
    parts = [read_records(folder / entry["file"], images or entry.get("images_root") or folder) for entry in entries]
    records = parts[0] if len(parts) == 1 else list(chain.from_iterable(parts))
    return TaskRecords(chosen, records, "+".join(names) or data.stem)


def first(records: Records | Sequence[Row], limit: int | None) -> Records | Sequence[Row]:
    """The first `limit` records; all of them if `limit` is None."""
    return records if limit is None or limit >= len(records) else list(islice(iter(records), limit))


def _named(facts: dict) -> str | None:
    """The name of the task in a card: its `task`, or the name of its dataset if that is a task too."""
    return facts.get("task") or next((name for name in (facts.get("name"),) if name in TASKS), None)


def _splits(data: Path, known: dict, task: Task, wanted: str | None) -> list[str]:
    for name in (wanted,) if wanted else task.splits:
        names = name.split("+")
        if all(part in known for part in names):
            return names
    if wanted is None and len(known) == 1:
        return list(known)
    raise MmdoraError(
        f"{data}: no split {wanted or ' or '.join(task.splits)}; there are {', '.join(known)} (choose with --split)"
    )
