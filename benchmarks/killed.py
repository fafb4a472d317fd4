"""The training process that `faults.py` kills: it records batches and saves, and ends itself where it is told to."""

from __future__ import annotations

import hashlib
import os
import runpy
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple


class Note(NamedTuple):
    """A line of the record of a run."""

    process: int
    step: int
    kind: str  # "batch" or "save"
    what: str  # digest of the batch, or file operation


@dataclass(frozen=True)
class Kill:
    """A kill at `step` or soon after it: right before a file operation of a save or, with None, from outside."""

    step: int
    before: str | None

    def __str__(self) -> str:
        return f"save at step {self.step}, before: {self.before}" if self.before else f"random, in step {self.step}"


def within(arguments: list[str], told: Path, record: Path, kill: Kill | None) -> None:
    """Act as `python -m mmdora ARGUMENTS` and record batches and saves, until `kill`."""
    file = os.open(told, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(file, 1)
    os.dup2(file, 2)
    from mmdora.train.steps import Steps

    notes = os.open(record, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def note(*fields: object) -> None:
        os.write(notes, "\t".join(map(str, (os.getpid(), *fields))).encode() + b"\n")

    def before(step: int, operation: str) -> None:
        note(step, "save", operation)
        if kill and step >= kill.step and operation == kill.before:
            os.kill(os.getpid(), signal.SIGKILL)

    def one_pass(self: Any, batch: Any, items: Any, batches: int) -> None:
        digest = hashlib.sha256()
        for name in sorted(batch):
            digest.update(name.encode() + batch[name].numpy().tobytes())
        note(self.progress.global_step + 1, "batch", digest.hexdigest()[:16])
        original(self, batch, items, batches)

    original, Steps.one_pass = Steps.one_pass, one_pass
    watch_saves(before)
    sys.argv = ["mmdora", *arguments]
    runpy.run_module("mmdora", run_name="__main__")


def watch_saves(before: Callable[[int, str], None]) -> None:
    """From now on, call `before(step, operation)` before every file operation inside a save.

    Python's audit events announce most file operations. Writes of torch.save and calls of fsync have no such events, so
    these functions are wrapped.
    """
    import torch

    from mmdora.train.saving import Checkpoints

    saving: list[int] = []
    removing = [""]
    verbs = {"os.mkdir": "mkdir", "os.rename": "rename to", "os.remove": "remove", "os.rmdir": "rmdir"}

    def told(verb: str, path: Any) -> None:
        before(saving[0], f"{verb} {_name(path, saving[0])}")

    def heard(event: str, values: tuple[Any, ...]) -> None:
        if not saving:
            return
        if event == "open" and isinstance(values[0], (str, os.PathLike)) and values[2] & (os.O_WRONLY | os.O_RDWR):
            told("open", values[0])
        elif event == "shutil.rmtree":
            removing[0] = _name(values[0], saving[0])
            told("rmtree", values[0])
        elif event == "os.remove":
            before(saving[0], f"remove {_name(values[0], saving[0])} of {removing[0]}")
        elif event in verbs:
            told(verbs[event], values[1] if event == "os.rename" else values[0])

    def fsync(file: int) -> None:
        if saving:
            told("fsync", os.readlink(f"/proc/self/fd/{file}"))
        original_fsync(file)

    def save(thing: Any, file: Any, *rest: Any, **more: Any) -> None:
        if saving:
            told("torch.save", file)
        original_save(thing, file, *rest, **more)

    def save_checkpoint(self: Any, progress: Any, losses: Any) -> None:
        saving.append(progress.global_step)
        try:
            original(self, progress, losses)
        finally:
            saving.clear()

    sys.addaudithook(heard)
    original_fsync, os.fsync = os.fsync, fsync
    original_save, torch.save = torch.save, save
    original, Checkpoints.save = Checkpoints.save, save_checkpoint


def _name(path: Any, step: int) -> str:
    """The last part of a path. Checkpoints are named by their age, so that names are the same in every save."""
    name = Path(os.fspath(path)).name
    if not name.startswith("checkpoint-"):
        return name
    return "checkpoint" if name == f"checkpoint-{step}" else "older checkpoint"
