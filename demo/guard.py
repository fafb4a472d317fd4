"""Checks every request before Gradio sees it: it limits failed logins, the size of requests, and the upload cache."""

from __future__ import annotations

import asyncio
import json
import time
from collections import defaultdict, deque
from pathlib import Path
from typing import Any

from starlette.exceptions import HTTPException

from mmdora.errors import MmdoraError
from mmdora.files import read_text

FAILED_LOGINS, WINDOW = 5, 60.0
"""After 5 failed logins within 60 seconds an address gets status 429, until the first of them is older than that."""
MAX_BODY = 200_000  # Bytes of a request that is no upload; the longest question and all settings need far less.
CACHE_FILES, CACHE_BYTES = 1_000, 500 * 10**6  # Most files and bytes of uploads, so that they cannot fill the disk.


def read_logins(path: Path) -> list[tuple[str, str]]:
    """Read a file with NAME:PASSWORD on each line; empty lines and lines that begin with # are left out.

    Raises:
        MmdoraError: if a line is not NAME:PASSWORD (the message gives its number), if there is no login, or if every
            user of the machine can read the file.
    """
    logins = []
    for number, line in enumerate(read_text(path, "file of logins").splitlines(), 1):
        if line.strip() and not line.startswith("#"):
            name, _, password = line.strip().partition(":")
            if not name or not password:
                raise MmdoraError(f"{path}: line {number} is not NAME:PASSWORD")
            logins.append((name, password))
    if not logins:
        raise MmdoraError(f"{path}: holds no login; write NAME:PASSWORD, one a line")
    if path.stat().st_mode & 0o004:
        raise MmdoraError(f"{path}: can be read by every user of this machine; chmod 600 {path}")
    return logins


class Guard:
    """ASGI middleware that checks requests.

    Args:
        app: the application that gets the requests after the checks.
        uploads: folder of the upload cache; files that are in it already are never removed.
    """

    def __init__(self, app: Any, uploads: Path):
        self.app, self.cache = app, Cache(uploads)
        self.failed: defaultdict[str, deque[float]] = defaultdict(deque)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http" or scope["method"] != "POST":
            return await self.app(scope, receive, send)
        path = scope["path"].rstrip("/")
        if path.endswith("/login"):
            return await self._login(scope, receive, send)
        if path.endswith("/upload"):
            await self.app(scope, receive, send)
            return await asyncio.to_thread(self.cache.sweep)
        await self.app(scope, _capped(receive), send)

    async def _login(self, scope: Any, receive: Any, send: Any) -> None:
        address = (scope.get("client") or ("",))[0]
        times = self.failed[address]
        while times and time.monotonic() - times[0] > WINDOW:
            times.popleft()
        if len(times) >= FAILED_LOGINS:
            wait = int(WINDOW - (time.monotonic() - times[0])) + 1
            return await _refuse(send, 429, f"Too many failed logins; try again in {wait} s.", wait)
        times.append(time.monotonic())  # Counted before the answer is known, so that many attempts at once count too.

        async def watch(message: Any) -> None:
            if message["type"] == "http.response.start" and message["status"] < 400:
                self.failed.pop(address, None)
            await send(message)

        await self.app(scope, _capped(receive), watch)


class Cache:
    """The folder of uploads, kept under a cap by removing the oldest."""

    def __init__(self, folder: Path, files: int = CACHE_FILES, size: int = CACHE_BYTES):
        self.folder, self.files, self.size = folder, files, size
        self.kept = set(_files(folder))

    def sweep(self) -> None:
        """Remove the oldest files over the cap."""
        uploads = []
        for path in _files(self.folder):
            try:
                stat = path.stat()
            except FileNotFoundError:
                continue
            if path not in self.kept:
                uploads.append((stat.st_mtime, stat.st_size, path))
        total = sum(size for _, size, _ in uploads)
        uploads.sort()
        for number, (_, size, path) in enumerate(uploads):
            if len(uploads) - number <= self.files and total <= self.size:
                break
            path.unlink(missing_ok=True)
            total -= size
            if not any(path.parent.iterdir()):
                path.parent.rmdir()


def _files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()] if folder.is_dir() else []


def _capped(receive: Any) -> Any:
    """Wrap `receive` so that a body over `MAX_BODY` is refused instead of filling the memory."""
    total = 0

    async def read() -> Any:
        nonlocal total
        message = await receive()
        total += len(message.get("body", b""))
        if total > MAX_BODY:
            raise HTTPException(413, "Request too large.")
        return message

    return read


async def _refuse(send: Any, status: int, detail: str, wait: int) -> None:
    body = json.dumps({"detail": detail}).encode()
    headers = [(b"content-type", b"application/json"), (b"retry-after", str(wait).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
