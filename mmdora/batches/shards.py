"""The files of a stream, on disk or in a remote store, and the rows in them, read one after another."""

from __future__ import annotations

import glob
import hashlib
import io
import re
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import IO

import fsspec

from mmdora.errors import MmdoraError
from mmdora.files import ordinary, sha256
from mmdora.records import packed
from mmdora.records.card import images_root
from mmdora.records.parse import numbered_lines, record_of
from mmdora.records.record import check_record
from mmdora.records.row import Row, row_of
from mmdora.records.turns import answer_text, split_turns

KINDS = (".jsonl", packed.SUFFIX)
"""Endings of the files that a stream can read."""
REMOTE = ("hf", "https")
"""Protocols of the remote stores that a stream can read from."""


class Shards:
    """The files of a stream, sorted by name; `root` is the folder that their image paths start from.

    Args:
        place: a file, a folder, or a pattern; on disk, or at `hf://` or `https://`.
        images: the root; by default that of the dataset's card, or else the folder that all the files are in.

    Raises:
        MmdoraError: if there is no file, if one is neither JSONL nor packed Parquet, or if the root is not known.
    """

    def __init__(self, place: Path | str, images: Path | None = None):
        self.place = re.sub(rf"^({'|'.join(REMOTE)}):/+", r"\1://", str(place))  # Path turns "//" into "/".
        remote = self.place.startswith(tuple(f"{protocol}://" for protocol in REMOTE))
        self.files = _remote(self.place) if remote else [str(path) for path in _local(Path(self.place))]
        if not self.files:
            raise MmdoraError(f"{self.place}: no file of records for a stream ({' or '.join(KINDS)})")
        for name in self.files:
            if not name.endswith(KINDS):
                raise MmdoraError(f"{name}: a stream reads {' and '.join(KINDS)} files; mmdora prep makes them")
        folders = {Path(name).parent for name in self.files}
        if images is None and (remote or len(folders) > 1) and any(name.endswith(KINDS[0]) for name in self.files):
            raise MmdoraError(f"{self.place}: set data.images to the folder that the image paths start from")
        self.root = images or (folders.pop() if remote else _root(self.files))
        if images is not None and not images.is_dir():
            raise MmdoraError(f"{images}: the images root is not a folder")

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the files' names and sizes, and of the content of the files on disk."""
        digest = hashlib.sha256()
        for name in self.files:
            protocol, remote, _ = name.rpartition("://")
            size = fsspec.filesystem(protocol).size(name) if remote else Path(name).stat().st_size
            digest.update(f"{Path(name).name}\0{size}\0".encode())
            if not remote:
                digest.update(bytes.fromhex(sha256(Path(name))))
        return digest.hexdigest()

    def check(self, max_turns: int | None = None) -> None:
        """Read the first record of each file on disk (of remote files, the first one only).

        Raises:
            MmdoraError: if that record cannot be used, or if the file has none.
        """
        local = [name for name in self.files if "://" not in name]
        for name in local or self.files[:1]:
            if next(rows_of([name], self.root, max_turns), None) is None:
                raise MmdoraError(f"{name}: holds no records")


def rows_of(files: list[str], root: Path, max_turns: int | None) -> Iterator[Row]:
    """Yield the rows of the files, one after another.

    Raises:
        MmdoraError: if a row is no record or has no answer, or if a file cannot be read to its end.
    """
    for name in files:
        try:
            for row, where in _rows(name, root):
                for piece in split_turns(row, max_turns):
                    if not answer_text(piece).strip():
                        raise MmdoraError(f"{where}: an empty last answer, so nothing to learn; leave it out")
                    yield piece
        except MmdoraError:
            raise
        except Exception as error:  # Each kind of remote store raises errors of its own.
            reason = getattr(error, "strerror", None) or f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
            raise MmdoraError(f"{name}: cannot be read ({reason}); when it can, go on with --resume") from None


def _rows(name: str, root: Path) -> Iterator[tuple[Row, str]]:
    with _opened(name) as file:
        if name.endswith(packed.SUFFIX):
            for number, (record, images) in enumerate(packed.read_packed(name, file)):
                where = f"{name}: row {number}"
                yield row_of(check_record(record, where), root, images), where
        else:
            for line, where in numbered_lines(file, name):
                yield row_of(record_of(line, where), root), where


def _opened(name: str) -> IO[bytes]:
    protocol, remote, _ = name.partition("://")
    if not remote:
        return open(name, "rb")
    # Remote files are wrapped because the readline of fsspec ignores the limit on a line's length.
    return io.BufferedReader(fsspec.filesystem(protocol).open(name, "rb"))


def _root(files: list[str]) -> Path:
    """The root of the image paths of files in one folder on disk."""
    roots = {images_root(Path(name)) for name in files}
    if len(roots) > 1:
        raise MmdoraError(f"{Path(files[0]).parent}: its files have different images roots; name one of them")
    return roots.pop()


def _local(path: Path) -> list[Path]:
    """The files of records at a path on disk."""
    if path.is_dir():
        return sorted(file for file in path.iterdir() if file.suffix in KINDS)
    patterned = not path.exists() and glob.has_magic(str(path))
    names = sorted(glob.glob(str(path), recursive=True)) if patterned else [path]
    return [ordinary(Path(name), "file of records") for name in names]


def _remote(address: str) -> list[str]:
    """The files of records that a remote store lists."""
    try:
        store = fsspec.filesystem(address.partition("://")[0])
        if address.endswith(KINDS) and not glob.has_magic(address):
            return [address]
        names = store.glob(address) if glob.has_magic(address) else store.ls(address, detail=False)
        return sorted(store.unstrip_protocol(name) for name in names if name.endswith(KINDS))
    except ImportError as error:
        raise MmdoraError(f"{address}: {error}; pip install 'fsspec[http]'") from None
    except Exception as error:  # Each kind of remote store raises errors of its own.
        reason = " ".join(str(error).split())[:200]
        raise MmdoraError(f"{address}: cannot be listed ({type(error).__name__}: {reason})") from None
