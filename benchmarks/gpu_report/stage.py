"""Runs one stage in this process: `python -m gpu_report.stage NAME FILE [--small]`."""

from __future__ import annotations

import argparse
import importlib
import os
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

from gpu_report.sheet import Sheet


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name")
    parser.add_argument("file", type=Path)
    parser.add_argument("--small", action="store_true")
    options = parser.parse_args()
    importlib.import_module(f"gpu_report.{options.name}").measure(Sheet(options.file, options.small))


if __name__ == "__main__":
    main()
