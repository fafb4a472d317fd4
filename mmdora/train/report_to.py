"""Where the log goes beside `log.jsonl`."""

from __future__ import annotations

import os
from typing import Any

from torch.utils.tensorboard import SummaryWriter
from transformers.integrations.integration_utils import TensorBoardCallback, TrackioCallback, WandbCallback

from mmdora.config import RunConfig

PROJECT = "mmdora"


def reporters(config: RunConfig) -> list[Any]:
    """The callbacks that `training.report_to` names; `check_packages` knows that they can be made."""
    made: list[Any] = []
    for name in config.training.report_to:
        if name == "tensorboard":
            made.append(TensorBoardCallback(SummaryWriter(str(config.training.output / "tensorboard"))))
        else:
            # the run is named after its folder by TrainingArguments.run_name, the project by the variable
            os.environ.setdefault(f"{name.upper()}_PROJECT", PROJECT)
            made.append(WandbCallback() if name == "wandb" else TrackioCallback())
    return made
