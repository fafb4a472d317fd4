"""Training: transformers.Trainer with adapters by modality."""

from mmdora.train.run import train

__all__ = ["train"]
