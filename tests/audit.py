"""What the interpreter opened, started and ran, as its audit events tell, and which of it was not its to open."""

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
"""What Python, its packages and their caches open. A case's own folder comes to it, and nothing else."""
FORBIDDEN = ("/proc/self/environ",)
PROCESSES = ("os.system", "os.exec", "os.posix_spawn", "os.spawn", "subprocess.Popen", "pty.spawn", "os.fork")
NETWORK = ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto", "urllib.Request")


class Watch:
    """What the interpreter opened, started and ran while a case was on, as its audit events tell."""

    def __init__(self) -> None:
        self.on = False
        self.opened: list[str] = []
        self.events: list[str] = []
        self.compiled: list[str] = []
        sys.addaudithook(self._hook)  # stays for as long as the interpreter does

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
    """Set the time of the last reading before that of the last change: then even `relatime` keeps book of a reading."""
    for path in paths:
        os.utime(path, (1, 2))


def was_read(path: Path) -> bool:
    return path.stat().st_atime != 1


def strangers(opened: list[str], folder: Path) -> list[str]:
    """Opened files that are neither the case's own nor those of Python and its packages."""
    own = (folder / "here", folder / "temporary")
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
