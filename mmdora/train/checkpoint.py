"""Writes checkpoints that are either complete or absent, and reads them back.

A checkpoint is written to a folder `.saving`, flushed to disk, listed in a manifest, and renamed. A kill at any moment
leaves the earlier checkpoints intact and, at worst, a folder `.saving` that the next save replaces. Before a run goes
on from a checkpoint, all files in its manifest are read and compared with their checksums.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Container, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from mmdora.adapter_files.files import CONFIG, OURS, WEIGHTS
from mmdora.errors import MmdoraError
from mmdora.files import FULL, STAGING, checksum_holds, full_disk, sha256, with_checksum

MANIFEST = "manifest.json"
STATE = "trainer_state.json"
ADAPTER = (WEIGHTS, CONFIG, OURS)
"""The files of a checkpoint that are its adapter."""
_NAME = re.compile(r"checkpoint-(\d+)")


@contextmanager
def staged(output: Path, step: int, main: bool = True) -> Iterator[Path]:
    """Give a folder to fill, which `seal` turns into `checkpoint-STEP`.

    Args:
        main: whether this process removes leftovers of earlier saves; exactly one of the processes that fill the folder
            has to.

    Raises:
        MmdoraError: if the folder cannot be written; the message gives path and bytes. Earlier checkpoints are
            unchanged.
    """
    staging = output / STAGING
    if main:
        shutil.rmtree(staging, ignore_errors=True)
    folder = staging / f"checkpoint-{step}"
    try:
        yield folder
    except (OSError, RuntimeError, SafetensorError) as error:
        if isinstance(error, RuntimeError) and not _is_write_error(error):
            raise
        written = sum(path.stat().st_size for path in staging.rglob("*") if path.is_file())
        free = shutil.disk_usage(output).free
        if main:
            shutil.rmtree(staging, ignore_errors=True)
        reason = getattr(error, "strerror", None) or next(iter(str(error).splitlines()), type(error).__name__)
        reason = reason.partition(";")[0]  # An error of a full disk has the free bytes itself.
        raise MmdoraError(
            f"{output / folder.name}: saving failed after {written:,} bytes ({reason}; {free:,} bytes are free on that "
            "disk); earlier checkpoints are untouched: make room, then go on with --resume"
        ) from error


@contextmanager
def writing_to(output: Path) -> Iterator[None]:
    """Let write errors that name no file name the folder, and those of a full disk the bytes.

    Raises:
        MmdoraError: the disk is full.
        OSError: any other error of writing, with a file name.
    """
    try:
        with full_disk(output):
            yield
    except OSError as error:
        if error.errno not in FULL:
            raise
        raise MmdoraError(f"{error.filename}: {error.strerror}: make room, then go on with --resume") from error


def seal(folder: Path, facts: Mapping[str, Any]) -> Path:
    """Flush a staged folder to disk, list its files in `manifest.json` beside `facts`, and move it to its place."""
    files = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        with path.open("rb+") as file:
            os.fsync(file.fileno())
        files[path.relative_to(folder).as_posix()] = {"bytes": path.stat().st_size, "sha256": sha256(path)}
    with (folder / MANIFEST).open("w", encoding="utf-8") as file:
        json.dump(with_checksum({**facts, "files": files}), file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    for inner in (*(path for path in folder.rglob("*") if path.is_dir()), folder):
        _flush_folder(inner)
    staging, final = folder.parent, folder.parent.parent / folder.name
    if final.exists():  # A damaged checkpoint of the same step is there, which the resume has passed over.
        final.rename(staging / "replaced")
    folder.rename(final)
    _flush_folder(final.parent)
    shutil.rmtree(staging, ignore_errors=True)
    return final


def manifest_of(checkpoint: Path, only: Container[str] | None = None) -> dict[str, Any]:
    """The manifest of a checkpoint, after every file in it was read and compared with its checksum.

    Args:
        only: names of the files to check; None checks all.

    Raises:
        MmdoraError: if a file is missing or differs from what was written; the message names the file.
    """
    try:
        manifest = json.loads((checkpoint / MANIFEST).read_text(encoding="utf-8"))
        files = {name: (entry["bytes"], entry["sha256"]) for name, entry in manifest["files"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise MmdoraError(f"{checkpoint} is not a complete checkpoint: {MANIFEST} is missing or unreadable") from None
    if not checksum_holds(manifest):
        raise MmdoraError(f"{checkpoint} is damaged: the content of {MANIFEST} is not what was written")
    if not files or any(Path(name).is_absolute() or ".." in Path(name).parts for name in files):
        raise MmdoraError(f"{checkpoint} is not a complete checkpoint: {MANIFEST} lists no files, or files elsewhere")
    for name, (size, digest) in files.items():
        if only is not None and name not in only:
            continue
        path = checkpoint / name
        if not path.is_file():
            raise MmdoraError(f"{checkpoint} is damaged: {name} is missing")
        if path.stat().st_size != size:
            raise MmdoraError(f"{checkpoint} is damaged: {name} has {path.stat().st_size:,} bytes instead of {size:,}")
        if sha256(path) != digest:
            raise MmdoraError(f"{checkpoint} is damaged: the content of {name} is not what was written")
    return manifest


def checkpoints(output: Path) -> list[Path]:
    """Folders named `checkpoint-STEP`, newest first."""
    folders = [path for path in output.glob("checkpoint-*") if _NAME.fullmatch(path.name)]
    return sorted(folders, key=step_of, reverse=True)


def step_of(checkpoint: Path) -> int:
    """The step in the name of a checkpoint; -1 for another name."""
    match = _NAME.fullmatch(checkpoint.name)
    return int(match[1]) if match else -1


def newest(output: Path, say: Callable[[str], None]) -> Path | None:
    """The newest complete checkpoint; damaged ones are reported through `say` and passed over."""
    for path in checkpoints(output):
        try:
            manifest_of(path)
        except MmdoraError as error:
            say(f"warning: {error}; passed over")
        else:
            return path
    return None


def best_of(checkpoint: Path) -> Path | None:
    """The folder of the checkpoint that was the best when this one was written; None if there was none.

    That folder may have been deleted since.
    """
    state = json.loads((checkpoint / STATE).read_text(encoding="utf-8"))
    if not state["best_model_checkpoint"]:
        return None
    then = Path(state["best_model_checkpoint"])
    beside = checkpoint.parent / then.name  # The run folder may have been moved since.
    return then if then.is_dir() and not beside.is_dir() else beside


def check_adapter(checkpoint: Path) -> None:
    """Read back the adapter of a checkpoint, before it is loaded or becomes the result of a run.

    Raises:
        MmdoraError: if one of its files is missing, or not what was written.
    """
    if not checkpoint.is_dir():
        raise MmdoraError(f"{checkpoint} is missing")
    manifest_of(checkpoint, ADAPTER)


def best_problem(checkpoint: Path) -> str | None:
    """A phrase that says what is wrong with the adapter of the best checkpoint that this one names; None if nothing."""
    best = best_of(checkpoint)
    try:
        if best is not None:
            check_adapter(best)
    except MmdoraError as error:
        return str(error)
    return None


def rotate(written: Path, keep: int, best: Path | None) -> None:
    """Delete all checkpoints but the newest `keep` and the best.

    Args:
        written: the newest complete checkpoint. A checkpoint of a later step must be damaged, so it is deleted too.
        keep: number of checkpoints to keep.
        best: the best checkpoint, which is never deleted.
    """
    newest_first = checkpoints(written.parent)
    place = newest_first.index(written)
    for path in (*newest_first[:place], *newest_first[place + keep :]):
        if best is None or path.resolve() != best.resolve():
            shutil.rmtree(path)


def _is_write_error(error: RuntimeError) -> bool:
    """Whether a RuntimeError is a write error: torch.save reports a full disk as an error of its archive writer."""
    return any(
        word in str(error) for word in ("PytorchStreamWriter", "unexpected pos", "inline_container", "iostream error")
    )


def _flush_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
