"""A stopped run that goes on is the undisturbed run: losses, rates, order of rows, adapter, bit for bit."""

import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny_run import config_for, curve, first_turns, same_run, same_tensors, silent

import mmdora
from mmdora.errors import MmdoraError
from mmdora.train import train
from mmdora.train.steps import Steps

# every loss logged; and a loss whose mean begins before a checkpoint and ends after it
SCHEDULES = {"every loss": {}, "means": {"log_every": 3, "eval_every": 2, "save_every": 4}}


@pytest.fixture(scope="module")
def records(scene_records):
    """18 rows, so that an epoch ends in the fifth step, with one micro-batch."""
    return first_turns(scene_records, 18)


@pytest.fixture(scope="module")
def whole(records, tmp_path_factory):
    """Undisturbed runs, by schedule, made when asked for."""
    made: dict[str, Path] = {}

    def run(schedule: str) -> Path:
        if schedule not in made:
            output = tmp_path_factory.mktemp("runs") / "whole"
            made[schedule] = train(config_for(records, output, **SCHEDULES[schedule]), say=silent)
        return made[schedule]

    return run


def test_a_run_learns(scene_records, tmp_path):
    four = first_turns(scene_records, 4)
    config = config_for(four, tmp_path / "run", steps=20, batch_size=64, accumulation=1, lr=3e-3, eval_every=20,
                        save_every=20)  # fmt: skip
    run = train(config, say=silent)
    losses = [entry["loss"] for entry in curve(run) if "loss" in entry]
    assert len(losses) == 20 and losses[-1] < 0.7 * losses[0]
    logged = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    for entry in logged[:20]:  # the rows there are, not those that a batch could hold
        assert 0 < entry["samples_per_s"] <= 4 / (entry["forward_s"] + entry["backward_s"])


def test_a_run_explains_itself(whole):
    run = whole("every loss")
    losses = [entry["loss"] for entry in curve(run) if "loss" in entry]
    assert len(losses) == 8
    done = json.loads((run / "complete.json").read_text())
    assert done["steps"] == 8 and done["final_loss"] == losses[-1]
    assert curve(run)[-1]["train_loss"] == pytest.approx(sum(losses) / 8)
    assert "dora" in (run / "plan.txt").read_text()
    assert any((run / "tensorboard").iterdir())
    best = min((e["eval_loss"], e["step"]) for e in curve(run) if "eval_loss" in e)
    assert same_tensors(
        run / "adapter/adapter_model.safetensors", run / f"checkpoint-{best[1]}/adapter_model.safetensors"
    )


@pytest.mark.parametrize(
    ("schedule", "stop"), [("every loss", 3), ("every loss", 6), ("means", 4)], ids=["epoch 1", "epoch 2", "mean"]
)
def test_resumed_is_bit_equal(whole, records, tmp_path, monkeypatch, schedule, stop):
    class StopError(Exception):
        pass

    step = Steps.one_pass

    def stopping(self, *args, **kwargs):
        if self.progress.global_step == stop + 1:  # one step after the checkpoint, mid-way
            raise StopError
        return step(self, *args, **kwargs)

    config = config_for(records, tmp_path / "run", **SCHEDULES[schedule])
    with monkeypatch.context() as patched:
        patched.setattr(Steps, "one_pass", stopping)
        with pytest.raises(StopError):
            train(config, say=silent)
    assert not (tmp_path / "run" / "complete.json").exists()
    run, undisturbed = train(config, resume=True, say=silent), whole(schedule)
    assert curve(run) == curve(undisturbed)
    assert same_run(run, undisturbed)
    states = [torch.load(r / "checkpoint-8" / "optimizer.pt", weights_only=True) for r in (run, undisturbed)]
    assert states[0]["param_groups"] == states[1]["param_groups"]
    for key, moments in states[0]["state"].items():
        assert all(torch.equal(moments[k], states[1]["state"][key][k]) for k in ("exp_avg", "exp_avg_sq"))


@pytest.mark.parametrize(("kills", "inside"), [(2, 1), pytest.param(10, 6, marks=pytest.mark.slow)])
def test_runs_that_are_killed(tmp_path, kills, inside):
    """The short form of the benchmark: real processes, SIGKILL, inside saves and between them."""
    faults = Path(mmdora.__file__).parents[1] / "benchmarks" / "faults.py"
    environment = {**os.environ, "PYTHONPATH": str(faults.parents[1]), "TMPDIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, str(faults), "--kills", str(kills)], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1] == f"kills={kills} equal={kills}"
    assert len(re.findall(r"save at step \d+", done.stdout)) == inside


def test_another_config_is_not_resumed(whole, records):
    config = config_for(records, whole("every loss"), seed=1)
    with pytest.raises(MmdoraError, match=r"training\.seed: 0 -> 1"):
        train(config, resume=True)


def test_a_finished_folder_is_not_overwritten(whole, records):
    with pytest.raises(MmdoraError, match="holds a run"):
        train(config_for(records, whole("every loss")))


def test_nothing_to_resume(records, tmp_path):
    with pytest.raises(MmdoraError, match="no checkpoint"):
        train(config_for(records, tmp_path / "none"), resume=True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"save_every": 4}, "must be a multiple"),
        ({"eval_every": None}, "eval_every is not"),
    ],
)
def test_schedules_that_do_not_fit(records, tmp_path, change, message):
    with pytest.raises(MmdoraError, match=message):
        train(config_for(records, tmp_path / "x", **change))


def test_output_that_is_a_file(records, tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(MmdoraError, match="is a file"):
        train(config_for(records, tmp_path / "file"))


def test_nothing_to_train(records, tmp_path):
    config = config_for(records, tmp_path / "x")
    with pytest.raises(MmdoraError, match=r"method .*none"):
        train(replace(config, adapt=type(config.adapt)()))
