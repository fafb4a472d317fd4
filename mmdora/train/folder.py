"""Writes the run folder, except for its checkpoints: config, plan, README, and at the end `complete.json`."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmdora.config import RunConfig
from mmdora.files import STAGING, write_json, write_whole
from mmdora.outputs.written import Written
from mmdora.train.readme import readme
from mmdora.train.resume import CONFIG, DONE

PLAN, LOG, README, RESULT = "plan.txt", "log.jsonl", "README.md", "adapter"


def open_folder(config: RunConfig, plan: str, data: str) -> None:
    """Write the files of a run that begins, or goes on.

    Args:
        plan: text for people that says what is adapted.
        data: a line with the numbers of rows and images.
    """
    output = config.training.output
    output.mkdir(parents=True, exist_ok=True)
    (output / DONE).unlink(missing_ok=True)
    shutil.rmtree(output / STAGING, ignore_errors=True)  # A save that was killed leaves this folder behind.
    write_whole(output / CONFIG, config.save)
    write_whole(output / PLAN, f"{plan}\n")
    explain(config, plan, data, None)


def close_folder(config: RunConfig, plan: str, data: str, done: Mapping[str, Any]) -> None:
    """Write `complete.json`, which marks that the run has ended, and the README with the result.

    Args:
        done: the content of `complete.json`.
    """
    explain(config, plan, data, done)
    write_json(config.training.output / DONE, done)


def explain(config: RunConfig, plan: str, data: str, done: Mapping[str, Any] | None) -> None:
    """Write the README of the run folder, unless a user has changed it, who then is told."""
    command, written = [Path(sys.argv[0]).name, *sys.argv[1:]], Written(config.training.output)
    if written.may_write(README):
        written.write(README, readme(config, plan, data, command, done))
    else:
        print(f"{config.training.output / README}: was changed by others, and is left as it is", file=sys.stderr)
