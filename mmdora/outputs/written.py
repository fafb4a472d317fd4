"""The files of a folder that mmdora itself wrote: they may be written anew, and no other file may.

A hidden file in the folder holds the SHA-256 of each file, noted before the file gets its name. So after a kill at any
moment what lies there is known, the old content or the new. A file that a user put there, or changed since, is not.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from mmdora.errors import MmdoraError
from mmdora.files import full_disk, json_text, partial_path, read_json, sha256, write_whole

FILES = ".mmdora-files.json"


class Written:
    """The files that mmdora wrote into a folder.

    Args:
        folder: the folder; it need not exist before the first `write`.
    """

    def __init__(self, folder: Path):
        self.folder = folder

    def check(self, *names: str) -> None:
        """Raise unless files of these names may be written.

        Raises:
            MmdoraError: one is there that mmdora did not write, or that was changed since; the message names it.
        """
        for name in names:
            if not self.may_write(name):
                raise MmdoraError(
                    f"{self.folder / name}: is there, and is no file that mmdora wrote and nobody changed since; it "
                    "is not overwritten: move it away, or name another folder"
                )

    def may_write(self, name: str) -> bool:
        """Whether there is no file of this name, or the one that mmdora wrote."""
        path = self.folder / name
        if not os.path.lexists(path):
            return True
        known = self._known().get(name, [])
        return bool(known) and path.is_file() and not path.is_symlink() and sha256(path) in known

    def write(self, name: str, content: str | bytes | Callable[[Path], object]) -> None:
        """Write a file whole, as `write_whole` does.

        Raises:
            MmdoraError: as for `check`.
            OSError: it cannot be written.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        self.check(name)
        partial = partial_path(self.folder / name)
        write_whole(partial, content)
        self.place(partial, name)

    def write_json(self, name: str, value: object) -> None:
        """Write a value as indented JSON."""
        self.write(name, json_text(value))

    def place(self, finished: Path, name: str, digest: str | None = None) -> None:
        """Give a finished file its name in the folder.

        Args:
            finished: a file on the same disk.
            digest: its SHA-256, if it is known.

        Raises:
            MmdoraError: as for `check`; the finished file is then removed.
            OSError: it cannot be moved.
        """
        try:
            self.check(name)
            known = self._known()
            # The old digest stays beside the new one: until the file has its name, the old content lies there.
            known[name] = list(dict.fromkeys([*known.get(name, [])[-1:], digest or sha256(finished)]))
            write_whole(self.folder / FILES, json_text(known))
            with full_disk(self.folder / name):
                finished.replace(self.folder / name)
        except BaseException:
            finished.unlink(missing_ok=True)
            raise

    def remove(self, name: str) -> None:
        """Delete a file that is there.

        Raises:
            MmdoraError: as for `check`.
        """
        self.check(name)
        (self.folder / name).unlink(missing_ok=True)

    def _known(self) -> dict[str, list[str]]:
        """Name of a file -> its digests: the one before, if there was one, and the last."""
        path = self.folder / FILES
        return read_json(path, "list of files") if path.is_file() else {}


def set_aside(path: Path) -> Path:
    """Rename a file or folder to the first free `NAME.1`, `NAME.2`, …; gives the new path."""
    number = 1
    while os.path.lexists(aside := path.with_name(f"{path.name}.{number}")):
        number += 1
    path.rename(aside)
    return aside
