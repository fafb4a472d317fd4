"""The machine at hand: versions and devices, for bug reports and for the report of a run, and its usable cores.

Nothing here names a user, a host or a path, and nothing imports torch before `collect` is called.
"""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version

from mmdora.version import __version__

PACKAGES = ("torch", "torchvision", "transformers", "accelerate", "peft", "datasets", "tokenizers", "safetensors",
            "huggingface_hub", "gradio", "Pillow", "numpy", "pyarrow")  # fmt: skip
OPTIONAL = (
    "bitsandbytes",
    "torchao",
    "triton",
    "flash_attn",
    "kernels",
    "deepspeed",
    "wandb",
    "trackio",
    "pycocoevalcap",
)
SETTINGS = ("OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES", "CUBLAS_WORKSPACE_CONFIG", "PYTORCH_ALLOC_CONF",
            "HF_HUB_OFFLINE", "TOKENIZERS_PARALLELISM", "TRITON_INTERPRET", "WORLD_SIZE")  # fmt: skip
"""Variables that change what is computed or where; none of them holds a secret or a path."""


def collect() -> dict[str, str]:
    """Name -> version or description."""
    import psutil
    import torch

    facts = {"mmdora": __version__, "python": platform.python_version(), "platform": platform.platform()}
    facts |= {package: _version(package) or "not installed" for package in PACKAGES}
    facts |= {package: installed for package in OPTIONAL if (installed := _version(package))}
    facts["cpu"] = f"{os.cpu_count()} cores, torch uses {torch.get_num_threads()} threads"
    facts["memory"] = f"{psutil.virtual_memory().total / 2**30:.0f} GiB"
    devices = [
        f"{torch.cuda.get_device_name(i)} ({torch.cuda.get_device_properties(i).total_memory / 2**30:.0f} GiB)"
        for i in range(torch.cuda.device_count())
    ]
    facts["cuda"] = f"{torch.version.cuda}: {', '.join(devices)}" if devices else "no device"
    if devices:
        facts["cudnn"] = str(torch.backends.cudnn.version())
        facts["bf16"] = "yes" if torch.cuda.is_bf16_supported() else "no"
    if torch.backends.mps.is_available():
        facts["mps"] = "available"
    return facts | {name: os.environ[name] for name in SETTINGS if name in os.environ}


def usable_cores() -> int:
    """How many processor cores this process may use; a container or `taskset` may leave it fewer than there are."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
