"""Feature files of videos: found, and measured by their headers alone."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np

from mmdora.errors import MmdoraError
from mmdora.records.images import locate


def measure(names: tuple[str, ...], root: Path | None) -> tuple[str, tuple[int, ...]]:
    """The first of the files that exists, and the shape of its features, [frames, width].

    An .npz holds them under the name `features`, or as its only array; HERO's extractor and VALUE's release differ.

    Args:
        names: the paths below `root` that the file may have.

    Raises:
        MmdoraError: no `root` is given, there is no such file below it, or the file holds no array of numbers.
    """
    if root is None:
        raise MmdoraError("give the root of the feature files with --features")
    name = next((name for name in names if (root / name).exists()), names[0])
    path = locate(name, root)
    try:
        if path.suffix == ".npy":
            with path.open("rb") as file:
                return name, _shape(file)
        with zipfile.ZipFile(path) as archive:
            arrays = archive.namelist()
            wanted = "features.npy" if "features.npy" in arrays or len(arrays) != 1 else arrays[0]
            with archive.open(wanted) as file:
                return name, _shape(file)
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise MmdoraError(f"features {path}: no readable array ({error.__class__.__name__})") from None


def _shape(file) -> tuple[int, ...]:
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read(file)
    if dtype.hasobject or not shape or not shape[0]:
        raise ValueError("objects, or no frame")
    return shape
