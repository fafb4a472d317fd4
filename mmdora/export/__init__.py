"""Merges a base and an adapter into one checkpoint, and checks it against what was trained."""

from mmdora.export.run import export

__all__ = ["export"]
