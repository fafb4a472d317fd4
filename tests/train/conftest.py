"""Fixtures for tests of checkpoints, kills and resuming: a run of 6 steps, complete, and stopped in its last step."""

from __future__ import annotations

import shutil

import pytest
from tiny_run import EVERY_TWO, config_for, first_turns, silent

from mmdora.train import train
from mmdora.train.checkpoint import checkpoints
from mmdora.train.steps import Steps


class StopError(Exception):
    """Ends a run in a test."""


@pytest.fixture(scope="session")
def ten_rows(scene_records):
    return first_turns(scene_records, 10)


@pytest.fixture(scope="session")
def six_steps(ten_rows, tmp_path_factory):
    """An undisturbed run of 6 steps."""
    return train(config_for(ten_rows, tmp_path_factory.mktemp("runs") / "whole", **EVERY_TWO), say=silent)


@pytest.fixture(scope="session")
def ended_in_step_6(ten_rows, tmp_path_factory):
    """The same run, stopped in step 6, with checkpoints of steps 2 and 4."""
    output = tmp_path_factory.mktemp("runs") / "ended"
    step = Steps.one_pass

    def stopping(self, *args, **kwargs):
        if self.progress.global_step == 5:
            raise StopError
        return step(self, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Steps, "one_pass", stopping)
        with pytest.raises(StopError):
            train(config_for(ten_rows, output, **EVERY_TWO), say=silent)
    assert [path.name for path in checkpoints(output)] == ["checkpoint-4", "checkpoint-2"]
    return output


@pytest.fixture
def stopped(ended_in_step_6, tmp_path):
    return shutil.copytree(ended_in_step_6, tmp_path / "run")
