"""Which code runs an operation: Triton kernels on CUDA, plain torch everywhere else."""

from __future__ import annotations

import importlib.util

import torch
from torch import Tensor

HAS_TRITON = importlib.util.find_spec("triton") is not None
"""torch brings Triton on Linux; its macOS and Windows builds do not. It is imported on first use."""


def on_triton(tensor: Tensor) -> bool:
    """The kernels take this tensor: it is on CUDA, and in at most the fp32 that they compute in."""
    return HAS_TRITON and tensor.is_cuda and tensor.dtype != torch.float64
