"""`mmdora quickstart` runs the whole path on a bundled base: adapt, evaluate, export, compare, report."""

from mmdora.quickstart.run import quickstart

__all__ = ["quickstart"]
