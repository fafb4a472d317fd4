"""One process at a time writes to a folder or a file; the second is told who does.

The lock is the operating system's (`flock`) on a file that the process keeps open. It ends with the process, however
that ends, so a kill leaves no lock behind, only the file, which the next process takes over. `filelock`, which other
modules use to wait for a cache, knows no holder to name, and its older versions empty the file that would name it.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import shlex
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from mmdora.errors import MmdoraError
from mmdora.files import full_disk

LOCK = ".mmdora-lock"
"""Name of the lock of a folder, inside it."""
NO_LOCKS = (errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK)
"""What a file system answers that has no locks, as some network file systems have none."""


class Held(MmdoraError):  # noqa: N818 (nothing is wrong with the place)
    """Another process writes there."""


_held: set[int] = set()
"""Descriptors of the locks that this process holds."""


@contextmanager
def locked(folder: Path, shown: Path | None = None) -> Iterator[None]:
    """Keep other processes from writing to a folder inside the block. The folder is made if it is not there, and
    removed if it is empty in the end.

    Args:
        shown: what messages call it, if that is not its own name.

    Raises:
        MmdoraError: another process writes there, which the message names; or the folder cannot be made or written.
    """
    with _one_line(shown or folder):
        made = [parent for parent in (folder, *folder.parents) if not parent.exists()]
        folder.mkdir(parents=True, exist_ok=True)
    try:
        with _taken(folder / LOCK, shown or folder):
            yield
    finally:
        for parent in made:
            with contextlib.suppress(OSError):  # It holds something by now, or is gone.
                parent.rmdir()


@contextmanager
def locked_file(path: Path) -> Iterator[None]:
    """Keep other processes from writing to a file inside the block; its lock is a hidden file beside it.

    Raises:
        MmdoraError: another process writes there, which the message names; or the lock cannot be written.
    """
    with _taken(path.with_name(f".{path.name}{LOCK}"), path):
        yield


@contextmanager
def _taken(lock: Path, what: Path) -> Iterator[None]:
    with _one_line(what):
        descriptor = _open(lock, what)
    _held.add(descriptor)
    try:
        yield
    finally:
        if descriptor in _held:  # It is not in a forked process.
            # The name goes while the lock is held: whoever has opened the file by now sees that it has none any more.
            lock.unlink(missing_ok=True)
            _held.discard(descriptor)
            os.close(descriptor)


def _open(lock: Path, what: Path) -> int:
    """Open the lock's file and lock it; gives the descriptor."""
    while True:
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_named(descriptor, lock):
                os.ftruncate(descriptor, 0)
                os.pwrite(descriptor, json.dumps(_self()).encode(), 0)
                return descriptor
            os.close(descriptor)
        except BlockingIOError:
            holder = _told(os.pread(descriptor, 1 << 16, 0))
            os.close(descriptor)
            raise Held(
                f"{what}: another run is writing there{holder}; wait for it, stop it, or name another place"
            ) from None
        except OSError as error:
            if error.errno in NO_LOCKS:
                print(f"warning: {what}: this disk has no locks; let no other run write there", file=sys.stderr)
                return descriptor
            os.close(descriptor)
            raise


@contextmanager
def _one_line(what: Path) -> Iterator[None]:
    try:
        with full_disk(what):
            yield
    except OSError as error:
        raise MmdoraError(f"{what}: cannot be written ({error.strerror}); name another place") from None


def _is_named(descriptor: int, lock: Path) -> bool:
    """Whether the open file is the one of that name: its last holder may have removed it after it was opened here."""
    try:
        return os.path.samestat(os.fstat(descriptor), lock.stat())
    except FileNotFoundError:
        return False


def _self() -> dict[str, str | int]:
    name = Path(sys.argv[0]).name
    return {
        "process": os.getpid(),
        "host": socket.gethostname(),
        "since": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": shlex.join(["mmdora" if name == "__main__.py" else name, *sys.argv[1:]]),
    }


def _told(content: bytes) -> str:
    """The holder of a lock in words; empty if it has not written them yet."""
    try:
        facts = json.loads(content)
        return f" (process {facts['process']} on {facts['host']}, since {facts['since']}: {facts['command']:.300})"
    except (ValueError, KeyError, TypeError):
        return ""


def _forget() -> None:
    """Close the locks in a forked process: one that outlives its parent would otherwise go on holding them."""
    for descriptor in _held:
        os.close(descriptor)
    _held.clear()


os.register_at_fork(after_in_child=_forget)
