"""Training: a loop on accelerate, with adapters by modality."""

from mmdora.train.run import train

__all__ = ["train"]
