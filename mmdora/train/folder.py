"""The run folder but for its checkpoints: config, plan, README, and `complete.json`, which is written last."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from mmdora.config import RunConfig
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
    _replace(output / CONFIG, config.save)
    (output / PLAN).write_text(f"{plan}\n", encoding="utf-8")
    explain(config, plan, data, None)


def close_folder(config: RunConfig, plan: str, data: str, done: Mapping[str, Any]) -> None:
    """Say that the run is at its end.

    Args:
        done: what `complete.json` holds.
    """
    explain(config, plan, data, done)
    text = json.dumps(done, indent=2)
    _replace(config.training.output / DONE, lambda path: path.write_text(text, encoding="utf-8"))


def explain(config: RunConfig, plan: str, data: str, done: Mapping[str, Any] | None) -> None:
    """Write the README."""
    text = readme(config, plan, data, [Path(sys.argv[0]).name, *sys.argv[1:]], done)
    _replace(config.training.output / README, lambda path: path.write_text(text, encoding="utf-8"))


def _replace(path: Path, write: Callable[[Path], object]) -> None:
    """Write beside the file, then rename over it: a kill leaves the old one or the new one."""
    beside = path.with_name(f".{path.name}.tmp")
    write(beside)
    os.replace(beside, path)
