"""Which code runs an operation: Triton kernels on CUDA, plain torch everywhere else."""

from __future__ import annotations

import importlib.util

import torch
from torch import Tensor

HAS_TRITON = importlib.util.find_spec("triton") is not None
"""torch brings Triton on Linux, and not on macOS and Windows. `kernels` imports it, at the first use on CUDA."""


def on_triton(tensor: Tensor) -> bool:
    """Whether the kernels take this tensor: it is on CUDA, and no finer than fp32, in which they compute."""
    return HAS_TRITON and tensor.is_cuda and tensor.dtype != torch.float64
