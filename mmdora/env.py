"""Describes the machine: versions and devices, for bug reports and for the report of a run, and its usable cores.

Nothing here names a user, a host or a path, and nothing imports torch before `collect` is called.
"""

from __future__ import annotations

import os
import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from packaging.version import Version

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
            "HF_HUB_OFFLINE", "MMDORA_TRITON", "TOKENIZERS_PARALLELISM", "TRITON_INTERPRET", "WORLD_SIZE")  # fmt: skip
"""Variables that change what is computed or where; none of them holds a secret or a path."""


LOCK = Path(__file__).with_name("constraints.txt")
"""The exact versions with which this mmdora was tested."""
WAITING = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
"""Variables that tell OpenMP's threads how to wait for each other: the standard's own, GNU's, LLVM's and Intel's."""

_passive_is_ours = False


def wait_passively() -> None:
    """Let OpenMP's threads sleep while they wait, unless the user has said how they shall wait.

    By default a waiting thread keeps its core busy. If other processes need the cores, the waiting threads can keep the
    thread that they wait for from running, and a training step takes many times as long (benchmarks/threads.py).
    OpenMP reads the variable once, when torch is imported, so a later call has no effect.
    """
    global _passive_is_ours
    if "torch" not in sys.modules and not any(name in os.environ for name in WAITING):
        os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
        _passive_is_ours = True


def collect() -> dict[str, str]:
    """Collect facts about this machine: name -> version or description."""
    import psutil
    import torch

    facts = {"mmdora": __version__, "python": platform.python_version(), "platform": platform.platform()}
    facts |= {package: _version(package) or "not installed" for package in PACKAGES}
    facts |= {package: installed for package in OPTIONAL if (installed := _version(package))}
    facts["tested"] = _beside_the_tested()
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
    facts |= {name: os.environ[name] for name in (*SETTINGS, *WAITING) if name in os.environ}
    if _passive_is_ours:
        facts["OMP_WAIT_POLICY"] += f" (set by mmdora: waiting threads sleep; a value of {', '.join(WAITING)} wins)"
    return facts


def usable_cores() -> int:
    """The number of processor cores that this process may use, which a container or `taskset` can limit."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _beside_the_tested() -> str:
    """A line that says which installed packages are newer or older than those that mmdora was tested with."""
    lines = (line for line in LOCK.read_text(encoding="utf-8").splitlines() if not line.startswith("#"))
    tested = {name.lower().replace("_", "-"): exact for name, _, exact in (line.partition("==") for line in lines)}
    newer, older = [], []
    for package in PACKAGES:
        exact, installed = tested.get(package.lower().replace("_", "-")), _version(package)
        if exact is None or installed is None:
            continue
        public = Version(installed).public  # "2.14.1+cpu" is a build of 2.14.1
        if Version(public) != Version(exact):
            (newer if Version(public) > Version(exact) else older).append(f"{package} {public} (tested: {exact})")
    parts = [f"{how} here: {', '.join(names)}" for how, names in (("newer", newer), ("older", older)) if names]
    return "; ".join(parts) or "with these versions"


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
