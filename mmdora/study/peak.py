"""The most memory that a process, or a GPU, has had in use since a moment."""

from __future__ import annotations

from pathlib import Path

import torch

STATUS, RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")
"""Linux tells the peak of a process in the line VmHWM of the first, and begins a new one when 5 is written to the
second (proc_pid_clear_refs(5))."""


def begin_peak() -> None:
    """Forget the peak so far."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    elif RESET.exists():
        RESET.write_text("5", encoding="ascii")


def peak_bytes() -> int | None:
    """The peak since `begin_peak`; None where the system does not tell, as on macOS.

    On a GPU these are the bytes that torch has allocated; else the resident bytes of the process, with its libraries.
    """
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    if not RESET.exists():
        return None
    line = next(line for line in STATUS.read_text(encoding="ascii").splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024
