"""Keeps the folder of uploads below its caps by removing the oldest, whatever arrives at once."""

from __future__ import annotations

import asyncio
import os
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

FILES, BYTES = 1_000, 500 * 10**6  # Most files and bytes of uploads, so that they cannot fill the disk.
PARTS = 4  # Most files of one request: the page sends one, and a question is about two pictures.
WAIT = 5.0  # Seconds that a request waits for room; uploads that arrive at once are done sooner.
STALE = 300.0  # Seconds after which a file that an upload left half written, or an empty folder, is nobody's.


@dataclass(frozen=True)
class Upload:
    """A file of the cache; `whole` tells whether it is in its place, or an upload still writes it."""

    path: Path
    time: float
    size: int
    whole: bool


class UploadCache:
    """The folder of uploads. Each request reserves its size before Gradio writes anything of it.

    A byte is counted once: by its request's reservation until the first look at the folder that began after the
    request's end, by its file from then on. Otherwise a sweep would find the cache fuller than it is, and remove
    uploads that have just been answered.

    All methods are called from the server's event loop. Gradio too makes a folder and moves an upload into it in one
    step of that loop, so that nothing is removed between the two.

    Args:
        folder: folder of the cache; files that are in it already are never removed.
        files: most files.
        size: most bytes, of whole files and of those that are arriving.
    """

    def __init__(self, folder: Path, files: int = FILES, size: int = BYTES):
        self.folder, self.files, self.size = folder, files, size
        self.kept = {upload.path for upload in _scan(folder)}
        self._arriving: dict[int, int] = {}
        self._ended_requests: list[object] = []
        self._bytes, self._count = 0, 0
        self._lock, self._ended = asyncio.Lock(), asyncio.Event()

    async def reserve(self, request: object, size: int) -> bool:
        """Make room for a request of this many bytes; gives False if others fill the cache for over `WAIT` seconds."""
        until, fits = time.monotonic() + WAIT, False
        while not fits and time.monotonic() < until:
            ended = self._ended  # It is taken before the look, so that no end of another request is missed.
            self._arriving[id(request)] = size
            try:
                if self._over(self._bytes, self._count):
                    await self.sweep()
                fits = not self._over(self._bytes, self._count)
            finally:
                if not fits:
                    del self._arriving[id(request)]
            if not fits:
                with suppress(TimeoutError):
                    await asyncio.wait_for(ended.wait(), until - time.monotonic())
        return fits

    async def release(self, request: object) -> None:
        """End a request; what it left in the folder is counted from now on."""
        self._ended_requests.append(request)
        await self.sweep()
        self._ended.set()
        self._ended = asyncio.Event()

    async def sweep(self) -> None:
        """Remove the oldest files until the caps hold, files that uploads left half written, and empty folders."""
        async with self._lock:
            ended = list(self._ended_requests)
            uploads, empty = await asyncio.to_thread(lambda: (_scan(self.folder), _empty_folders(self.folder)))
            for request in ended:
                del self._arriving[id(request)]
                self._ended_requests.remove(request)
            whole = [upload for upload in uploads if upload.whole and upload.path not in self.kept]
            total, count = sum(upload.size for upload in whole), len(whole)
            for upload in sorted(whole, key=lambda upload: upload.time):
                if self._over(total, count) and _removed(upload):
                    total, count = total - upload.size, count - 1
            stale = time.time() - STALE
            for upload in uploads:
                if not upload.whole and upload.time < stale:
                    _removed(upload)
            for folder in empty:
                _remove_folder(folder, stale)
            self._bytes, self._count = total, count

    def _over(self, total: int, count: int) -> bool:
        """Whether whole files of this number and size, and all that is arriving, are over a cap."""
        arriving = self._arriving.values()
        return total + sum(arriving) > self.size or count + PARTS * len(arriving) > self.files


def _removed(upload: Upload) -> bool:
    """Remove the file, unless it was uploaded anew since it was seen."""
    try:
        if upload.path.stat().st_mtime != upload.time:
            return False
        upload.path.unlink()
    except FileNotFoundError:
        pass  # Another sweep has removed it.
    return True


def _remove_folder(folder: Path, stale: float) -> None:
    """Remove a folder that has long been empty. A thread of Gradio may be about to fill one that has just become so."""
    try:
        if folder.stat().st_mtime < stale:
            folder.rmdir()
    except OSError:  # The folder was filled or removed meanwhile.
        pass


def _scan(folder: Path) -> list[Upload]:
    uploads = {}
    for parent, _, names in os.walk(folder):
        for path in (Path(parent, name) for name in names):
            try:
                stat = path.stat()
            except FileNotFoundError:  # Gradio has moved the file to its place meanwhile.
                continue
            # A file that is moved during the walk is met in both places; the later one stands.
            uploads[stat.st_ino] = Upload(path, stat.st_mtime, stat.st_size, whole=path.parent != folder)
    return list(uploads.values())


def _empty_folders(folder: Path) -> list[Path]:
    paths = (Path(parent) for parent, folders, names in os.walk(folder) if not folders and not names)
    return [path for path in paths if path != folder]
