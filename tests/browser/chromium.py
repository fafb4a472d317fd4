"""Finds or installs Chromium: `python tests/browser/chromium.py` prints its path.

It is installed from the system's packages if this user may do that (they include the libraries that it needs), or else
from playwright.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from playwright.sync_api import sync_playwright

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
PATIENCE = 300  # Seconds for each command, because without a network some commands never end.


def executable() -> str | None:
    """The path of a Chromium that starts: the system's or else playwright's; None if there is none."""
    paths = [path for name in NAMES if (path := shutil.which(name))]
    with sync_playwright() as playwright:
        paths.append(playwright.chromium.executable_path)
    return next(filter(_starts, paths), None)


def install() -> str | None:
    """Install Chromium in the first way that works; gives its path, or None."""
    sudo = [] if os.geteuid() == 0 else ["sudo"] if sys.stdin.isatty() else ["sudo", "-n"]
    apt = [*sudo, "apt-get"]
    for way in (
        [[*apt, "update"], [*apt, "install", "-y", "--no-install-recommends", "chromium"]],
        [[sys.executable, "-m", "playwright", "install", "--no-shell", "chromium"]],
    ):
        for command in way:
            print("+", *command, file=sys.stderr)
            _run(command)
        if path := executable():
            return path
    return None


def _starts(path: str) -> bool:
    return Path(path).is_file() and _run([path, "--version"], quiet=True)


def _run(command: list[str], *, quiet: bool = False) -> bool:
    where = subprocess.DEVNULL if quiet else sys.stderr
    try:
        return subprocess.run(command, stdout=where, stderr=where, timeout=PATIENCE, check=False).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


if __name__ == "__main__":
    path = executable() or install()
    if path is None:
        sys.exit("Chromium cannot be had here: neither from apt-get nor from playwright's server")
    print(path)
