"""Looks at the paths that a command line names before torch is imported, which takes seconds."""

from __future__ import annotations

import re
from pathlib import Path

from mmdora.config import RunConfig
from mmdora.errors import MmdoraError
from mmdora.files import ordinary
from mmdora.outputs.folder import check_finished

HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")


def check_model(name: str) -> None:
    """Raise if a model is named by a path that leads nowhere, or to what is not finished. Whether a hub id exists shows
    later."""
    check_finished(Path(name))
    try:
        there = Path(name).expanduser().exists()
    except (OSError, ValueError, RuntimeError):  # it is too long, or has a NUL, or there is no such user
        there = False
    if not there and (name.startswith((".", "~")) or not HUB_ID.fullmatch(name)):
        raise MmdoraError(
            f"model {name[:200]!r}: there is no folder {name[:200]}, and it is no id of the hub (USER/NAME)"
        )


def check_results_folder(out: Path) -> None:
    """Raise if no folder can be made at `out`, because it or a folder that leads to it is a file."""
    for place in (out, *out.parents):
        if place.exists() and not place.is_dir():
            raise MmdoraError(f"{out}: {place} is a file; name a folder to write to")


def check_config(config: RunConfig) -> None:
    """Raise if a config names a base, a file of records or a root of images that is not there."""
    if config.model.compose is None:
        check_model(config.model.base)
    for source in config.data.sources.values():
        files = [source.eval] if config.data.stream else [source.train, source.eval]
        for path in files:
            if path is not None:
                ordinary(check_finished(path), "file of records (mmdora prep makes one)")
        if source.images is not None and not source.images.is_dir():
            raise MmdoraError(f"{source.images}: the images root is not a folder")
