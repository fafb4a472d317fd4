"""The processes of one evaluation: those that `accelerate launch` or torchrun started, or the one there is."""

from __future__ import annotations

import torch
from accelerate import PartialState
from accelerate.utils import parse_flag_from_env


def processes() -> PartialState:
    """They share the work by gloo where there is no GPU, or where the launcher was told to use none."""
    return PartialState(cpu=not torch.cuda.is_available() or parse_flag_from_env("ACCELERATE_USE_CPU"))
