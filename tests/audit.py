"""Records the files, processes and connections that the interpreter opens, and finds files that it must not open."""

from __future__ import annotations

import contextlib
import os
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import matplotlib
from huggingface_hub.constants import HF_HOME
from PIL import Image

READABLE = (
    *(Path(path) for path in {*sysconfig.get_paths().values(), sys.prefix, sys.base_prefix}),
    Path(__file__).parents[1],
    Path(os.environ["HF_DATASETS_CACHE"]),
    Path(HF_HOME),
    Path(matplotlib.get_cachedir()),
    *map(Path, ("/proc", "/sys", "/dev/null", "/dev/urandom", "/dev/tty", "/usr/lib", "/usr/share")),
    *map(Path, ("/lib", "/etc/mime.types")),
)
"""Files and folders that Python, its packages and their caches open. Besides these, only a case's own folder may be."""
FORBIDDEN = ("/proc/self/environ",)
PROCESSES = ("os.system", "os.exec", "os.posix_spawn", "os.spawn", "subprocess.Popen", "pty.spawn", "os.fork")
NETWORK = ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto", "urllib.Request")


class Watch:
    """Records, from audit events, what the interpreter opens, starts and compiles while a case runs."""

    def __init__(self) -> None:
        self.on = False
        self.opened: list[str] = []
        self.events: list[str] = []
        self.compiled: list[str] = []
        sys.addaudithook(self._hook)  # An audit hook cannot be removed, so `on` switches it off.

    def _hook(self, event: str, args: tuple[Any, ...]) -> None:
        if not self.on:
            return
        if event == "open" and isinstance(args[0], (str, bytes)):
            self.opened.append(os.fsdecode(args[0]))
        elif event in NETWORK or event in PROCESSES:
            self.events.append(f"{event} {args!r:.200}")
        elif event == "compile":
            self.compiled.append(str(args[1]))

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        self.opened, self.events, self.compiled = [], [], []
        self.on = True
        try:
            yield
        finally:
            self.on = False


def write_outside(folder: Path) -> list[Path]:
    (folder / "outside").mkdir()
    Image.new("RGB", (24, 16), "blue").save(folder / "outside" / "secret.png")
    return [folder / "outside" / "secret.png"]


def forget_reading(paths: list[Path]) -> None:
    """Set the time of the last reading before that of the last change; only then `relatime` records a new reading."""
    for path in paths:
        os.utime(path, (1, 2))


def was_read(path: Path) -> bool:
    return path.stat().st_atime != 1


def strangers(opened: list[str], folder: Path, *declared: Path) -> list[str]:
    """The opened files that belong neither to the case, nor to the declared folders, nor to Python and its packages."""
    own = (folder / "here", folder / "temporary", *declared)
    paths = {name: Path(os.path.abspath(os.path.join(folder / "here", name))) for name in opened}
    return [
        name
        for name, path in paths.items()
        if str(path) in FORBIDDEN
        or (
            not any(path.is_relative_to(root) for root in own)
            and (path.is_relative_to(folder) or not any(path.is_relative_to(root) for root in READABLE))
        )
    ]
