"""Versions and devices, for bug reports and for the report of a run. Names no user, host or path."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version

PACKAGES = ("torch", "transformers", "accelerate", "peft", "datasets", "gradio", "safetensors", "Pillow", "numpy")


def collect() -> dict[str, str]:
    """Name -> version or description."""
    import torch

    import mmdora

    found = {"mmdora": mmdora.__version__, "python": platform.python_version(), "platform": platform.platform()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    found["cpu"] = f"{os.cpu_count()} cores, torch uses {torch.get_num_threads()} threads"
    devices = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    found["cuda"] = f"{torch.version.cuda}: {', '.join(devices)}" if devices else "no device"
    mps = torch.backends.mps.is_available()
    return found | ({"mps": "available"} if mps else {})
