"""Files: reading what a user names, writing a file whole or not at all, the SHA-256 of a file.

Nothing here knows what a file is for, and nothing here imports torch.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import stat
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mmdora.errors import MmdoraError

SETTINGS_BYTES = 2**20
"""No config file is larger than this many bytes; a larger file was named by mistake."""
PARTIAL = ".partial"
"""The suffix of every file and folder that is not finished. What a killed process leaves behind ends with it."""
STAGING = ".saving"
"""The folder in a run folder in which a checkpoint is written."""
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""The errors of a disk, or of a limit, that lets no more be written."""


def ordinary(path: Path, what: str) -> Path:
    """`path`, if it is an ordinary file: not a folder, and not a pipe or device, which would make a reader wait.

    Args:
        what: what the file should be, for the message, as in "config file".

    Raises:
        MmdoraError: there is no such file, or it is of another kind.
    """
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        raise MmdoraError(f"{path}: no such {what}") from None
    except (OSError, ValueError) as error:  # a loop of links, no permission; a NUL in the name
        raise MmdoraError(f"{str(path)!r}: not a readable {what} ({_reason(error)})") from None
    if stat.S_ISDIR(mode):
        raise MmdoraError(f"{path}: not a readable {what} (it is a folder)")
    if not stat.S_ISREG(mode):
        raise MmdoraError(f"{path}: not a regular file; name a {what}")
    return path


class _FullDiskError(OSError):
    """The error of a full disk, with the bytes; blocks of `full_disk` lie in one another, and the innermost made it."""


@contextmanager
def full_disk(path: Path, needed: int | None = None) -> Iterator[None]:
    """Let the error of a full disk name the path and the bytes. Every write of ours stands in such a block.

    Args:
        path: the file or folder that is written.
        needed: bytes to write, where they are known.

    Raises:
        OSError: in place of one without a file name, or of a full disk: with a file name, `path` if it had none.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in FULL:
            if error.errno is None or error.filename is not None:
                raise
            raise OSError(error.errno, error.strerror, str(path)) from error
        if isinstance(error, _FullDiskError):
            raise
        want = "" if needed is None else f"{needed:,} bytes were to be written, "
        reason = f"{error.strerror}; {want}{free_bytes(path):,} bytes are free on that disk"
        raise _FullDiskError(error.errno, reason, str(error.filename or path)) from error


def free_bytes(path: Path) -> int:
    """The bytes that are free on the disk of a file or folder, which need not be there yet."""
    return shutil.disk_usage(next(folder for folder in (path, *path.absolute().parents) if folder.is_dir())).free


def read_text(path: Path, what: str, limit: int = SETTINGS_BYTES) -> str:
    """The text of a small UTF-8 file; a byte order mark is left out.

    Raises:
        MmdoraError: as `ordinary`; or larger than `limit` bytes, or not UTF-8.
    """
    if ordinary(path, what).stat().st_size > limit:
        raise MmdoraError(f"{path}: larger than {limit / 2**20:g} MiB, which no {what} is")
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise MmdoraError(f"{path}: not a readable UTF-8 file ({_reason(error)})") from None


def read_json(path: Path, what: str, limit: int = 64 * SETTINGS_BYTES) -> dict[str, Any]:
    """The object that a JSON file holds.

    Raises:
        MmdoraError: as `read_text`, or broken, nested too deeply, or no object.
    """
    text = read_text(path, what, limit)
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise MmdoraError(f"{path}: not a readable JSON file ({_reason(error)})") from None
    if not isinstance(values, dict):
        raise MmdoraError(f"{path}: expected a JSON object, found {type(values).__name__}")
    return values


def partial_path(path: Path, *, shared: bool = False) -> Path:
    """Where a file or folder lies while it is written: `.NAME.partial` beside its final place.

    Whoever needs a file open for long writes there and then calls `.replace(path)`; `write_whole` does it in one call.

    Args:
        shared: several processes may write the same `path` at once. The name then holds the process number,
            `.NAME.PID.partial`; without it the next run overwrites what a killed one left.
    """
    process = f".{os.getpid()}" if shared else ""
    return path.with_name(f".{path.name}{process}{PARTIAL}")


def write_whole(path: Path, content: str | bytes | Callable[[Path], object], *, shared: bool = False) -> None:
    """Write a file beside its place, then rename it: readers, and a kill, see the old file or the new one.

    Nothing is flushed to the disk: after a power failure the file may be the old one, or damaged.

    Args:
        path: in a folder that exists.
        content: the bytes; or text, written as UTF-8; or a function that writes a file to the path it is given.
        shared: as for `partial_path`.

    Raises:
        OSError: it cannot be written; `path` is then as it was, and nothing is left beside it. Whatever else
            a function given as `content` raises is passed on in the same way.
    """
    partial = partial_path(path, shared=shared)
    data = content.encode() if isinstance(content, str) else content
    try:
        with full_disk(path, None if callable(data) else len(data)):
            if callable(data):
                data(partial)
            else:
                partial.write_bytes(data)
            partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def write_json(path: Path, value: Any) -> None:
    """Write a value as indented JSON (UTF-8), whole or not at all; errors as for `write_whole`."""
    write_whole(path, json_text(value))


def json_text(value: Any) -> str:
    """A value as indented JSON, with a line end."""
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"


def sha256(content: Path | bytes) -> str:
    """The SHA-256 of a file's content, or of bytes, as 64 hexadecimal digits."""
    if isinstance(content, bytes):
        return hashlib.sha256(content).hexdigest()
    with content.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


CHECKSUM = "sha256"
"""The key under which a JSON file of ours keeps the checksum of its other values."""


def with_checksum(values: Mapping[str, Any], free: Collection[str] = ()) -> dict[str, Any]:
    """Values for a JSON file, with the checksum that `checksum_holds` compares.

    Args:
        free: keys whose values may be edited later; the checksum does not cover them.
    """
    return {**values, CHECKSUM: digest_of(values, free)}


def checksum_holds(values: Mapping[str, Any], free: Collection[str] = ()) -> bool:
    """Whether values read from a JSON file are those that were written; files without a checksum pass."""
    return CHECKSUM not in values or values[CHECKSUM] == digest_of(values, free)


def digest_of(values: Mapping[str, Any], free: Collection[str] = ()) -> str:
    """The SHA-256 of plain values, however a JSON file spells them (order of keys, spaces, tuples or lists)."""
    # Keys become text before they are sorted: as numbers they would stand in another order than in the file.
    plain = json.loads(json.dumps({key: value for key, value in values.items() if key not in {*free, CHECKSUM}}))
    return sha256(json.dumps(plain, sort_keys=True).encode())


def _reason(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "nested too deeply"
    if isinstance(error, UnicodeDecodeError):
        return f"byte {error.start} is not UTF-8"
    return getattr(error, "strerror", None) or str(error)
