"""Reports how a run goes on: a progress bar, and `log.jsonl`."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from tqdm.auto import tqdm

from mmdora.files import full_disk, write_whole
from mmdora.train.progress import Progress
from mmdora.train.times import PHASES


class Report(Protocol):
    """An object that is told how a run goes on: `RunLog`, or a tracker."""

    def begin(self, progress: Progress) -> None: ...

    def step(self, progress: Progress) -> None: ...

    def log(self, progress: Progress, logs: Mapping[str, Any]) -> None: ...

    def close(self) -> None: ...


class RunLog:
    """A progress bar with loss, speed and shares of the time, and `log.jsonl` with one line per log.

    Args:
        path: the file `log.jsonl`.
        rows_per_step: mean number of rows of a step in all processes, for the speed.
    """

    def __init__(self, path: Path, rows_per_step: float):
        self.path, self.rows_per_step = path, rows_per_step
        self.bar: tqdm | None = None
        self.since: tuple[float, int] = (0.0, 0)

    def begin(self, progress: Progress) -> None:
        # The stopped run may have logged more after its last checkpoint; a resumed run logs those steps again.
        history = [entry for entry in progress.log_history if entry.get("step", 0) <= progress.global_step]
        write_whole(self.path, "".join(json.dumps(entry) + "\n" for entry in history))
        self.since = (time.monotonic(), progress.global_step)
        self.bar = tqdm(total=progress.max_steps, initial=progress.global_step, unit="step", dynamic_ncols=True)

    def step(self, progress: Progress) -> None:
        if self.bar is not None:
            self.bar.update(progress.global_step - self.bar.n)

    def log(self, progress: Progress, logs: Mapping[str, Any]) -> None:
        entry = {"step": progress.global_step, **logs}
        if "loss" in entry:
            now = time.monotonic()
            steps = progress.global_step - self.since[1]
            entry["samples_per_s"] = round(steps * self.rows_per_step / max(now - self.since[0], 1e-9), 2)
            self.since = (now, progress.global_step)
            if self.bar is not None:
                words = [f"loss {entry['loss']:.4f}", f"{entry['samples_per_s']:.0f} rows/s", *waiting(entry)]
                self.bar.set_postfix_str(", ".join(words))
        with full_disk(self.path), self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")

    def close(self) -> None:
        """End the bar, however the run has ended, so that the next message begins on a new line."""
        if self.bar is not None:
            self.bar.close()
            self.bar = None


def waiting(entry: dict[str, Any]) -> list[str]:
    """The share of a step's time that went into waiting for data, for the progress bar; log.jsonl has all phases.

    It alone is shown, because a terminal of 80 columns has no room for more, and more workers mend it.
    """
    spent = sum(entry.get(f"{phase}_s", 0.0) for phase in PHASES)
    return [f"data {100 * entry.get('data_s', 0.0) / spent:.0f}%"] if spent else []
