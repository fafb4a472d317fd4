"""Trains adapters by modality, with a loop on accelerate."""

from mmdora.train.run import train

__all__ = ["train"]
