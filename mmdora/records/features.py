"""Features of clips, as `mmdora prep` found them: an .npy, or an .npz with `features` or one array."""

from __future__ import annotations

import zipfile

import numpy as np

from mmdora.errors import MmdoraError
from mmdora.records.images import FileRef


def open_features(features: FileRef) -> np.ndarray:
    """[frames, width] float32 of a file; nothing pickled is read.

    Raises:
        MmdoraError: if there is no such file, or no such array in it.
    """
    path = features.path
    try:
        found = np.load(path, allow_pickle=False)
        if not isinstance(found, np.ndarray):
            with found:
                found = found["features" if "features" in found.files or len(found.files) != 1 else found.files[0]]
        return np.asarray(found, np.float32)
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise MmdoraError(f"features {path}: no readable array ({error.__class__.__name__})") from None
