"""Where an export is written: beside its final place, locked, and renamed when it is complete."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from mmdora.errors import MmdoraError
from mmdora.files import free_bytes, full_disk, partial_path
from mmdora.outputs.folder import check_new_folder
from mmdora.outputs.lock import LOCK, locked
from mmdora.outputs.stop import stoppable


@contextmanager
def beside(out: Path) -> Iterator[Path]:
    """A folder beside `out` that becomes `out` on success and disappears otherwise. Its lock keeps out other exports.

    Raises:
        MmdoraError: another export writes there, or `out` is neither new nor empty by now.
        Interrupted: a signal came.
    """

    def left() -> str:
        whole = (out / "config.json").is_file()
        return f"{out} is complete" if whole else f"nothing is at {out}; the same command begins anew"

    folder = partial_path(Path(os.path.abspath(out)))
    with stoppable(left), locked(folder, out):
        try:
            for path in folder.iterdir():  # What an export that was killed has left goes.
                if path.name != LOCK:
                    shutil.rmtree(path) if path.is_dir() else path.unlink()
            yield folder
            with writing(out):
                check_new_folder(out)
                if out.is_dir():
                    out.rmdir()
                folder.rename(out)
            (out / LOCK).unlink(missing_ok=True)
        finally:
            shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def writing(out: Path, size: int = 0) -> Iterator[None]:
    """Check the room for a checkpoint of `size` bytes; errors of writing become one line.

    Raises:
        MmdoraError: there is too little room, or something cannot be written.
    """
    free = free_bytes(out)
    if free < size:
        raise MmdoraError(f"{out}: the checkpoint needs {size:,} bytes, its disk has {free:,} left")
    try:
        with full_disk(out, size):
            yield
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or f"{error}; {free:,} bytes were free on that disk"
        raise MmdoraError(f"{out}: cannot write the checkpoint of {size:,} bytes: {reason}") from None


def readable(folder: Path) -> None:
    """Set ordinary permissions, because temporary folders and safetensors files are readable by their owner only."""
    os.umask(mask := os.umask(0o077))
    for path in (folder, *folder.rglob("*")):
        path.chmod((0o777 if path.is_dir() else 0o666) & ~mask)
