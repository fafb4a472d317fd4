"""Rows that a program holds in memory are written into the run folder, so that a run can be resumed and repeated."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from mmdora.config import RunConfig
from mmdora.errors import MmdoraError
from mmdora.files import partial_path, sha256
from mmdora.outputs.written import Written
from mmdora.prepare.memory import MemoryRows

FOLDER = "data"
"""The folder in that of the run in which the rows are kept."""


def with_rows(config: RunConfig, rows: Any, held_out: Any) -> tuple[RunConfig, Mapping[Path, MemoryRows]]:
    """The config that names the files of these rows, and the rows that each file will hold.

    Raises:
        MmdoraError: the config names records too; or something is no rows.
    """
    given, data = {"train": rows, "eval": held_out}, config.data
    if all(each is None for each in given.values()):
        return config, {}
    if data.tasks or data.stream:
        raise MmdoraError("rows: data.tasks and data.stream read files; leave them out, or name a file for each")
    folder, files, kept = config.training.output.absolute() / FOLDER, {}, {}
    for key, each in given.items():
        if each is None:
            continue
        if getattr(data, key) is not None:
            name = "rows" if key == "train" else "held_out"
            raise MmdoraError(f"{name}: data.{key} names records too ({getattr(data, key)}); leave one out")
        memory = MemoryRows.of(each, data.images)
        files[key] = folder / f"{'train' if key == 'train' else 'held_out'}{memory.suffix}"
        kept[files[key]] = memory
    roots = {memory.root for memory in kept.values() if not memory.pack}
    if len(roots) > 1:
        raise MmdoraError("rows, held_out: give all pictures as absolute paths, or all below data.images")
    images = data.images or next(iter(roots), None)
    return replace(config, data=replace(data, images=images, **files)), kept


def keep(kept: Mapping[Path, MemoryRows], *, resumed: bool, allow_changes: bool) -> None:
    """Write the rows to their files. Only the main process does this, while it holds the run folder.

    Raises:
        MmdoraError: a row is none; a file of others is there; or a resumed run has other rows, and `allow_changes` is
            not set.
    """
    for path, memory in kept.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        memory.write(new := partial_path(path), path.stem)
        if path.exists() and sha256(path) == sha256(new):
            new.unlink()
            continue
        if path.exists() and resumed and not allow_changes:
            new.unlink()
            raise MmdoraError(f"resume: {path} holds the rows of the stopped run, and these differ; give the same rows")
        Written(path.parent).place(new, path.name)
