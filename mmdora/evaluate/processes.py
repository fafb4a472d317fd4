"""The processes of one evaluation, which `accelerate launch` or torchrun started (or a single one)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, parse_flag_from_env

from mmdora.errors import MmdoraError

T = TypeVar("T")


def processes() -> PartialState:
    """The state of the processes, which communicate by gloo if there is no GPU or the launcher was told to use none."""
    return PartialState(cpu=not torch.cuda.is_available() or parse_flag_from_env("ACCELERATE_USE_CPU"))


def main_makes(make: Callable[[], T]) -> T:
    """Call `make` in the main process, and give its result in all processes.

    Raises:
        MmdoraError: in all processes, if it was raised in the main one, which alone tells it.
    """
    main = processes().is_main_process
    made: list[Any] = [None, None]
    if main:
        try:
            made[0] = make()
        except MmdoraError as error:
            made[1] = str(error)
    result: Any
    result, line = broadcast_object_list(made)
    if line is None:
        return result
    error = MmdoraError(line)
    error.told = not main
    raise error
