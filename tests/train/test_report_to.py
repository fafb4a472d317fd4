"""What a run logs arrives at tensorboard, wandb and trackio, under the names that these are used to."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny_run import config_of, tree_for

from mmdora.train.processes import Processes
from mmdora.train.progress import Progress
from mmdora.train.report_to import reporters

LOGGED = {"loss": 0.5, "eval_loss": 0.25, "epoch": 1.0}
ARRIVES = {"train/loss": 0.5, "eval/loss": 0.25, "train/epoch": 1.0}


def report(folder: Path, name: str) -> None:
    """Log once, at step 3."""
    config = config_of(tree_for(folder / "records.jsonl", folder / "my-run", evaluates=False, report_to=[name]))
    Processes(config.training)  # the trackers ask accelerate which process they are in
    (tracked,) = reporters(config)
    progress = Progress(global_step=3)
    tracked.begin(progress)
    tracked.step(progress)
    tracked.log(progress, LOGGED)
    tracked.close()


def test_tensorboard(tmp_path: Path) -> None:
    report(tmp_path, "tensorboard")
    (path,) = (tmp_path / "my-run" / "tensorboard").iterdir()
    found = EventAccumulator(str(path)).Reload()
    scalars = {tag: [(event.step, event.value) for event in found.Scalars(tag)] for tag in found.Tags()["scalars"]}
    assert scalars == {tag: [(3, value)] for tag, value in ARRIVES.items()}
    (text,) = found.Tensors("config/text_summary")
    assert b"training.lr: 0.0005" in text.tensor_proto.string_val[0]


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_a_tracker_that_is_a_service(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    told: list[Any] = []
    run = SimpleNamespace(log=lambda values, step: told.append((values, step)), finish=lambda: told.append("finished"))
    service = SimpleNamespace(
        init=lambda **settings: told.append(settings) or run,
        config=SimpleNamespace(update=lambda values, **_: told.append(values["training.lr"])),
    )
    monkeypatch.setitem(sys.modules, name, service)
    monkeypatch.delenv(f"{name.upper()}_PROJECT", raising=False)
    report(tmp_path, name)
    assert told == [{"project": "mmdora", "name": "my-run"}, "0.0005", (ARRIVES, 3), "finished"]


def test_a_tracker_that_was_not_begun_is_closed(tmp_path: Path) -> None:
    """A run that fails before its first step closes what it has."""
    for tracked in reporters(config_of(tree_for(tmp_path / "records.jsonl", tmp_path / "run", evaluates=False))):
        tracked.close()
    assert not (tmp_path / "run").exists()
