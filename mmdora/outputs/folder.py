"""What a folder is before it is written, and while it is."""

from __future__ import annotations

from pathlib import Path

from mmdora.errors import MmdoraError
from mmdora.files import PARTIAL, STAGING


def check_new_folder(out: Path) -> None:
    """Raise unless a checkpoint can go to `out`: a new or empty folder."""
    if out.is_symlink() or (out.exists() and not out.is_dir()):
        raise MmdoraError(f"{out}: is not a folder; export to a new or empty one")
    if out.is_dir() and any(out.iterdir()):
        raise MmdoraError(f"{out}: is not empty; export to a new or empty folder")


def check_finished(path: Path) -> Path:
    """`path`, unless it is, or lies in, what a command has not finished writing.

    Raises:
        MmdoraError: it does; the message names the unfinished file or folder.
    """
    place = path.absolute()
    for part in (*reversed(place.parents), place):
        if part.name == STAGING or (part.name.startswith(".") and part.name.endswith(PARTIAL)):
            raise MmdoraError(
                f"{path}: is not finished ({part.name}): what wrote it was stopped, or is still writing; run that "
                "command again, which clears it away, and name what it then writes"
            )
    return path
