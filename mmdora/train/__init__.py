"""Trains adapters by modality, with a loop on accelerate. The package is called as the function `train`."""

from mmdora.called import called
from mmdora.train.run import train

__all__ = ["train"]

called(__name__, "mmdora.train.run", "train")
