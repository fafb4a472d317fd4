"""Finds the adapters of a run: its complete checkpoints in their order, and its final adapter."""

from __future__ import annotations

import filecmp
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from mmdora.adapter_files.files import WEIGHTS, refuse_pickle
from mmdora.errors import MmdoraError
from mmdora.train.checkpoint import ADAPTER, MANIFEST, checkpoints, manifest_of, step_of


class Point(NamedTuple):
    """One adapter of a run."""

    step: int | None
    """The step of a checkpoint; None for an adapter that is no checkpoint."""
    folder: Path


def points_of(run: Path, say: Callable[[str], Any]) -> list[Point]:
    """The adapters in a run folder, oldest first, or the one in an adapter folder.

    A checkpoint whose files differ from its manifest is named through `say` and passed over. The final adapter
    `adapter/` is left out if it is the copy of a checkpoint.

    Raises:
        MmdoraError: if there is no adapter.
    """
    points: list[Point] = []
    for folder in reversed(checkpoints(run)):
        try:
            if (folder / MANIFEST).exists() or not (folder / WEIGHTS).exists():
                # Only the adapter's files are checked, because the optimizer's may have been deleted.
                manifest_of(folder, ADAPTER)
        except MmdoraError as error:
            say(f"warning: {error}; passed over")
        else:
            points.append(Point(step_of(folder), folder))
    for folder in (run, run / "adapter"):
        refuse_pickle(folder)
        weights = folder / WEIGHTS
        if weights.is_file() and not any(filecmp.cmp(weights, p.folder / WEIGHTS, shallow=False) for p in points):
            points.append(Point(None, folder))
    if not points:
        raise MmdoraError(f"{run}: nothing to analyze here; name a run folder (checkpoint-N/, adapter/) or an adapter")
    return points
