"""Where the log goes beside `log.jsonl`: the trackers of accelerate."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from accelerate.tracking import GeneralTracker, TensorBoardTracker, TrackioTracker, WandBTracker

from mmdora.config import RunConfig
from mmdora.train.progress import Progress

PROJECT = "mmdora"
"""The project at wandb and trackio, unless WANDB_PROJECT or TRACKIO_PROJECT names another; the run is its folder."""


class Tracked:
    """A tracker that is handed what the run logs.

    Args:
        settings: of the run, with dotted keys.
    """

    def __init__(self, tracker: GeneralTracker, settings: Mapping[str, str]):
        self.tracker, self.settings = tracker, settings

    def begin(self, progress: Progress) -> None:
        self.tracker.start()
        if isinstance(self.tracker, TensorBoardTracker):  # whose own table of settings wants a folder for each run
            text = "\n".join(f"    {key}: {value}" for key, value in self.settings.items())
            self.tracker.writer.add_text("config", text)
        else:
            self.tracker.store_init_configuration(dict(self.settings))

    def step(self, progress: Progress) -> None:
        """Nothing: trackers get what is logged."""

    def log(self, progress: Progress, logs: Mapping[str, Any]) -> None:
        named = {
            f"eval/{key.removeprefix('eval_')}" if key.startswith("eval_") else f"train/{key}": value
            for key, value in logs.items()
        }
        self.tracker.log(named, step=progress.global_step)

    def close(self) -> None:
        if hasattr(self.tracker, "writer") or hasattr(self.tracker, "run"):  # it was begun
            self.tracker.finish()


def reporters(config: RunConfig) -> list[Tracked]:
    """What `training.report_to` names; `check_packages` knows that they can be made. For the main process only."""
    output = config.training.output
    made: list[GeneralTracker] = []
    for name in config.training.report_to:
        if name == "tensorboard":
            made.append(TensorBoardTracker("tensorboard", output))
        else:
            project = os.environ.get(f"{name.upper()}_PROJECT", PROJECT)
            made.append({"wandb": WandBTracker, "trackio": TrackioTracker}[name](project, name=output.name))
    return [Tracked(tracker, dict(_flat(config.to_dict()))) for tracker in made]


def _flat(tree: Any, key: str = "") -> list[tuple[str, str]]:
    if isinstance(tree, dict):
        return [pair for name, inner in tree.items() for pair in _flat(inner, f"{key}.{name}".lstrip("."))]
    return [(key, str(tree))]
