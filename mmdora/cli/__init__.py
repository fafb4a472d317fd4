"""The command line: every command is a thin call of a function that Python users can call, too.

Each command has a file, and importing the file registers the command. What a command needs is imported inside it, so
that `mmdora --help` does not wait for torch.
"""

from mmdora.cli import analyze, demo, env, evaluate, export, inspect, prep, prune, quickstart, study, train, verify
from mmdora.cli.app import app
from mmdora.cli.entry import main

__all__ = [
    "analyze",
    "app",
    "demo",
    "env",
    "evaluate",
    "export",
    "inspect",
    "main",
    "prep",
    "prune",
    "quickstart",
    "study",
    "train",
    "verify",
]
