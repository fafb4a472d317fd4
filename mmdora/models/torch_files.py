"""Reads PyTorch files of other projects, without running any code that they may contain."""

from __future__ import annotations

from pathlib import Path
from pickle import UnpicklingError

import torch
from torch import Tensor

from mmdora.errors import MmdoraError


def read_state(file: Path) -> dict[str, Tensor]:
    """Read a `state_dict` that `torch.save` wrote, onto the CPU. With `weights_only` its pickle cannot run code.

    Raises:
        MmdoraError: if the file cannot be read, or holds anything but names and tensors.
    """
    try:
        state = torch.load(file, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, UnpicklingError) as error:
        raise MmdoraError(f"{file}: not a readable PyTorch file: {' '.join(str(error).split())[:300]}") from None
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise MmdoraError(f"{file}: not a state_dict (names and tensors)")
    return state
