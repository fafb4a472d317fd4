"""Reads the features of a clip from an .npy file, or from an .npz with an array `features` or a single array."""

from __future__ import annotations

import zipfile

import numpy as np

from mmdora.errors import MmdoraError
from mmdora.records.images import FileRef


def open_features(features: FileRef) -> np.ndarray:
    """[frames, width] float32: the features in a file. Pickled arrays are refused, because they could run code.

    Raises:
        MmdoraError: if there is no such file, or no such array in it.
    """
    path = features.path
    try:
        loaded = np.load(path, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            return np.asarray(loaded, np.float32)
        with loaded:
            name = "features" if "features" in loaded.files or len(loaded.files) != 1 else loaded.files[0]
            return np.asarray(loaded[name], np.float32)
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise MmdoraError(f"features {path}: no readable array ({error.__class__.__name__})") from None
