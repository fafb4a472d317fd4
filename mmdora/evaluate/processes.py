"""The processes of one evaluation, which `accelerate launch` or torchrun started (or a single one)."""

from __future__ import annotations

import torch
from accelerate import PartialState
from accelerate.utils import parse_flag_from_env


def processes() -> PartialState:
    """The state of the processes, which communicate by gloo if there is no GPU or the launcher was told to use none."""
    return PartialState(cpu=not torch.cuda.is_available() or parse_flag_from_env("ACCELERATE_USE_CPU"))
