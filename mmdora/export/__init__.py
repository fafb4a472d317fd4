"""From a base and an adapter to one merged checkpoint, checked against what was trained."""

from mmdora.export.run import export

__all__ = ["export"]
