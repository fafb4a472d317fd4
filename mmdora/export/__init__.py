"""Merges a base and an adapter into one checkpoint, and checks it. The package is called as the function `export`."""

from mmdora.called import called
from mmdora.export.run import export

__all__ = ["export"]

called(__name__, "mmdora.export.run", "export")
