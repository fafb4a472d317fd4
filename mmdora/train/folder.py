"""The run folder but for its checkpoints: config, plan, README, and `complete.json`, which is written last."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmdora.config import RunConfig
from mmdora.files import write_json, write_whole
from mmdora.train.checkpoint import STAGING
from mmdora.train.readme import readme
from mmdora.train.resume import CONFIG, DONE

PLAN, LOG, README, RESULT = "plan.txt", "log.jsonl", "README.md", "adapter"


def open_folder(config: RunConfig, plan: str, data: str) -> None:
    """Begin a run in its folder, or go on with one.

    Args:
        plan: what is adapted, for a person.
        data: rows and images in a line.
    """
    output = config.training.output
    output.mkdir(parents=True, exist_ok=True)
    (output / DONE).unlink(missing_ok=True)
    shutil.rmtree(output / STAGING, ignore_errors=True)  # left behind by a save that was killed
    write_whole(output / CONFIG, config.save)
    write_whole(output / PLAN, f"{plan}\n")
    explain(config, plan, data, None)


def close_folder(config: RunConfig, plan: str, data: str, done: Mapping[str, Any]) -> None:
    """Say that the run is at its end.

    Args:
        done: what `complete.json` holds.
    """
    explain(config, plan, data, done)
    write_json(config.training.output / DONE, done)


def explain(config: RunConfig, plan: str, data: str, done: Mapping[str, Any] | None) -> None:
    """Write the README."""
    command = [Path(sys.argv[0]).name, *sys.argv[1:]]
    write_whole(config.training.output / README, readme(config, plan, data, command, done))
