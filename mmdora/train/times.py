"""Measures how the time of a step divides into phases, without making host or device wait."""

from __future__ import annotations

import time
from itertools import pairwise
from typing import Any

import torch

PHASES = ("data", "forward", "backward", "optimizer")


class StepTimes:
    """Seconds of each phase of a step: means over the steps since the last log.

    `data` is the time that the host waits for the loader. On a CPU the other phases are host time. On CUDA they are the
    device's time between two events in its stream, which are read when a log has waited for the loss anyway; `data`
    then delays the run only if the device has run out of work. Gradient clipping and the check of the norm count as
    `optimizer`; saving and evaluation do not count.
    """

    def __init__(self, device: torch.device):
        self.device = device
        self.samples = 0
        """Rows since the last log; only packed batches say how many rows they hold."""
        self._marks: list[tuple[str | None, float, Any]] = []
        self._steps = 0

    def mark(self, phase: str | None) -> None:
        """End the current phase and begin `phase`; None begins a time that is not counted."""
        event = None
        if self.device.type == "cuda":
            event = torch.cuda.Event(enable_timing=True)
            event.record()
        self._marks.append((phase, time.perf_counter(), event))

    def end_step(self) -> None:
        self.mark(None)
        self._steps += 1

    def per_step(self) -> dict[str, float]:
        """Give the mean `data_s`, `forward_s`, `backward_s` and `optimizer_s` of a step, and start anew.

        For packed rows it also gives `samples_per_step`.
        """
        if not self._steps:
            return {}
        spent: dict[str, float] = dict.fromkeys(PHASES, 0.0)
        for (phase, begun, event), (_, ended, after) in pairwise(self._marks):
            if phase is not None:
                if event is not None and after is not None and phase != "data":
                    spent[phase] += event.elapsed_time(after) / 1e3
                else:
                    spent[phase] += ended - begun
        entry = {f"{phase}_s": round(seconds / self._steps, 6) for phase, seconds in spent.items()}
        if self.samples:
            entry["samples_per_step"] = round(self.samples / self._steps, 2)
        self._marks, self._steps, self.samples = [], 0, 0
        return entry
