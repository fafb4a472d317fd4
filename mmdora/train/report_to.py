"""Sends the log of a run to accelerate's trackers (tensorboard, wandb, trackio)."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from accelerate.tracking import GeneralTracker, TensorBoardTracker, TrackioTracker, WandBTracker

from mmdora.config import RunConfig
from mmdora.train.progress import Progress

PROJECT = "mmdora"
"""Name of the project at wandb and trackio, unless WANDB_PROJECT or TRACKIO_PROJECT is set; a run is named by its
folder."""


class Tracked:
    """Passes what the run logs on to a tracker.

    Args:
        tracker: one of accelerate's trackers.
        settings: dotted key -> value of each setting of the run.
    """

    def __init__(self, tracker: GeneralTracker, settings: Mapping[str, str]):
        self.tracker, self.settings = tracker, settings

    def begin(self, progress: Progress) -> None:
        self.tracker.start()
        if isinstance(self.tracker, TensorBoardTracker):  # Its own way to store settings would make another folder.
            text = "\n".join(f"    {key}: {value}" for key, value in self.settings.items())
            self.tracker.writer.add_text("config", text)
        else:
            self.tracker.store_init_configuration(dict(self.settings))

    def step(self, progress: Progress) -> None:
        """Do nothing, because trackers only get what is logged."""

    def log(self, progress: Progress, logs: Mapping[str, Any]) -> None:
        named = {
            f"eval/{key.removeprefix('eval_')}" if key.startswith("eval_") else f"train/{key}": value
            for key, value in logs.items()
        }
        self.tracker.log(named, step=progress.global_step)

    def close(self) -> None:
        if hasattr(self.tracker, "writer") or hasattr(self.tracker, "run"):  # It has one only after start().
            self.tracker.finish()


def reporters(config: RunConfig) -> list[Tracked]:
    """Make the trackers that `training.report_to` names, in the main process only.

    `check_packages` has checked that their packages are installed.
    """
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
