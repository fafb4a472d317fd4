"""Which code runs an operation: Triton kernels on CUDA, plain torch everywhere else.

Triton compiles its launcher with a C compiler and Python's headers, which slim containers lack, and fails at the first
launch. So one small kernel is launched before any other, and if that fails, plain torch computes the same. The variable
`MMDORA_TRITON=0` chooses plain torch from the start.
"""

from __future__ import annotations

import importlib.util
import os
import warnings

import torch
from torch import Tensor

from mmdora.errors import MmdoraError

HAS_TRITON = importlib.util.find_spec("triton") is not None
"""torch brings Triton on Linux, and not on macOS and Windows. `kernels` imports it, at the first use on CUDA."""
SWITCH = "MMDORA_TRITON"
_problems: dict[int, str | None] = {}
"""Index of a device -> why its kernels cannot be launched; None if they can."""


def on_triton(tensor: Tensor) -> bool:
    """Whether the kernels take this tensor: it is on CUDA, and no finer than fp32, in which they compute."""
    return HAS_TRITON and tensor.is_cuda and tensor.dtype != torch.float64 and _works(tensor.device.index)


@torch.compiler.assume_constant_result
def _works(index: int) -> bool:
    """Whether the kernels can be launched on this device. Where nobody asked before, a warning says why not."""
    if index not in _problems and (line := problem(torch.device("cuda", index))) is not None:
        warnings.warn(line, stacklevel=2)
    return _problems[index] is None


def problem(device: torch.device) -> str | None:
    """A line that says why plain torch computes on this device instead of the kernels; None if they do, or need not.

    The first call launches a kernel, which takes about a second.

    Raises:
        MmdoraError: `MMDORA_TRITON` is neither 0 nor 1.
    """
    if device.type != "cuda" or not HAS_TRITON:
        return None
    index = torch.cuda.current_device() if device.index is None else device.index
    if index not in _problems:
        _problems[index] = _tried(device)
    return _problems[index]


def emulates_bf16(device: torch.device) -> bool:
    """Whether torch and Triton compute bf16 in fp32 on this device, because it is older than compute capability 8.0."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device)[0] < 8


def _tried(device: torch.device) -> str | None:
    switch = os.environ.get(SWITCH, "1")
    if switch not in ("0", "1"):
        raise MmdoraError(f"{SWITCH}={switch}: must be 0 (plain torch) or 1 (Triton kernels)")
    if switch == "0":
        return f"{SWITCH}=0: plain torch computes instead of the Triton kernels"
    try:
        from mmdora.ops import kernels

        kernels.try_launch(device)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # A lacking compiler, header or driver shows as many types of error.
        reason = next(iter(str(error).splitlines()), "")
        return (
            f"Triton cannot launch a kernel here ({type(error).__name__}: {reason}); plain torch computes instead, "
            f"slower. Triton needs a C compiler and Python.h (gcc, python3-dev); {SWITCH}=0 tries no launch"
        )
    return None
