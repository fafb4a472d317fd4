"""What a run tells while it goes on: a progress bar, and `log.jsonl`."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm
from transformers import TrainerCallback

from mmdora.train.times import PHASES


class RunLog(TrainerCallback):
    """A progress bar with loss, speed and where the time goes, and `log.jsonl` with one line per log.

    Args:
        rows_per_step: the mean, of all processes.
    """

    def __init__(self, path: Path, rows_per_step: float):
        self.path, self.rows_per_step = path, rows_per_step
        self.bar: tqdm | None = None
        self.since: tuple[float, int] = (0.0, 0)

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        # a resumed run rewrites what the stopped one logged after its last checkpoint
        history = [entry for entry in state.log_history if entry.get("step", 0) <= state.global_step]
        self.path.write_text("".join(json.dumps(entry) + "\n" for entry in history), encoding="utf-8")
        self.since = (time.monotonic(), state.global_step)
        self.bar = tqdm(total=state.max_steps, initial=state.global_step, unit="step", dynamic_ncols=True)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.bar is not None:
            self.bar.update(state.global_step - self.bar.n)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        entry = {"step": state.global_step, **{key: _number(value) for key, value in (logs or {}).items()}}
        if "loss" in entry:
            now = time.monotonic()
            steps = state.global_step - self.since[1]
            entry["samples_per_s"] = round(steps * self.rows_per_step / max(now - self.since[0], 1e-9), 2)
            self.since = (now, state.global_step)
            if self.bar is not None:
                shown = {"loss": f"{entry['loss']:.4f}", "samples_per_s": f"{entry['samples_per_s']:.0f}"}
                self.bar.set_postfix(shown | shares(entry))
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")

    def close(self) -> None:
        """End the bar, also when the run ended otherwise than it should: what is said next gets a line of its own."""
        if self.bar is not None:
            self.bar.close()
            self.bar = None


def shares(entry: dict[str, Any]) -> dict[str, str]:
    """How a step's time splits, as in the terminal's line: `data/forward/backward/optimizer=2/31/60/7%`."""
    spent = [entry.get(f"{phase}_s", 0.0) for phase in PHASES]
    if not sum(spent):
        return {}
    return {"/".join(PHASES): "/".join(f"{100 * seconds / sum(spent):.0f}" for seconds in spent) + "%"}


def _number(value: Any) -> Any:
    return float(value) if isinstance(value, (int, float, torch.Tensor)) else value
