"""A stopped run that goes on is the undisturbed run: losses, rates, order of rows, adapter, bit for bit."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from mmdora.config import RunConfig, validate
from mmdora.errors import MmdoraError
from mmdora.train import train
from mmdora.train.run import LOG
from mmdora.train.trainer import AdapterTrainer


def config_for(records: Path, output: Path, **training) -> RunConfig:
    tree = {
        "adapt": {
            "vision": {"method": "dora", "rank": 2, "lr": 3e-4},
            "projector": {"method": "full", "lr": 1e-4},
            "language": {"method": "dora", "rank": 4, "dropout": 0.1, "magnitude_lr": 1e-3},
        },
        "data": {"train": str(records), "eval": str(records), "eval_rows": 4},
        "training": {"output": str(output), "steps": 8, "batch_size": 2, "accumulation": 2, "lr": 5e-4, "log_every": 1,
                     "eval_every": 3, "save_every": 3} | training,
    }  # fmt: skip
    return validate(RunConfig, tree, where=lambda key: "test")


def curve(run: Path) -> list[dict]:
    drop = ("samples_per_s", "runtime", "per_second", "flos", "train_loss")
    entries = [json.loads(line) for line in (run / LOG).read_text().splitlines()]
    return [{k: v for k, v in entry.items() if not any(word in k for word in drop)} for entry in entries]


@pytest.fixture(scope="module")
def whole(scene_records, tmp_path_factory):
    """An undisturbed run of 8 steps over more than one epoch (20 rows with images and 4 without, 4 a step)."""
    output = tmp_path_factory.mktemp("runs") / "whole"
    return train(config_for(scene_records, output), say=lambda line: None)


def test_a_run_learns(scene_records, tmp_path):
    four = scene_records.parent / "four.jsonl"
    four.write_text("".join(scene_records.read_text().splitlines(keepends=True)[:4]))
    config = config_for(four, tmp_path / "run", steps=20, batch_size=4, accumulation=1, lr=3e-3, eval_every=20,
                        save_every=20)  # fmt: skip
    losses = [entry["loss"] for entry in curve(train(config, say=lambda line: None)) if "loss" in entry]
    assert len(losses) == 20 and losses[-1] < 0.7 * losses[0]


def test_a_run_explains_itself(whole):
    losses = [entry["loss"] for entry in curve(whole) if "loss" in entry]
    assert len(losses) == 8
    done = json.loads((whole / "complete.json").read_text())
    assert done["steps"] == 8 and done["final_loss"] == losses[-1]
    assert "dora" in (whole / "plan.txt").read_text()
    assert any((whole / "tensorboard").iterdir())
    best = min((e["eval_loss"], e["step"]) for e in curve(whole) if "eval_loss" in e)
    saved = load_file(whole / "adapter" / "adapter_model.safetensors")
    of_best = load_file(whole / f"checkpoint-{best[1]}" / "adapter_model.safetensors")
    assert saved.keys() == of_best.keys() and all(torch.equal(saved[k], of_best[k]) for k in saved)


@pytest.mark.parametrize("stop", [3, 6])
def test_resumed_is_bit_equal(whole, scene_records, tmp_path, monkeypatch, stop):
    class StopError(Exception):
        pass

    step = AdapterTrainer.training_step

    def stopping(self, *args, **kwargs):
        if self.state.global_step == stop + 1:  # one step after the checkpoint, mid-way
            raise StopError
        return step(self, *args, **kwargs)

    config = config_for(scene_records, tmp_path / "run")
    with monkeypatch.context() as patched:
        patched.setattr(AdapterTrainer, "training_step", stopping)
        with pytest.raises(StopError):
            train(config, say=lambda line: None)
    assert not (tmp_path / "run" / "complete.json").exists()
    run = train(config, resume=True, say=lambda line: None)
    assert curve(run) == curve(whole)
    for file in ("adapter/adapter_model.safetensors", "checkpoint-6/adapter_model.safetensors"):
        ours, theirs = load_file(run / file), load_file(whole / file)
        assert ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in ours), file
    states = [torch.load(r / "checkpoint-6" / "optimizer.pt", weights_only=True) for r in (run, whole)]
    assert states[0]["param_groups"] == states[1]["param_groups"]
    for key, moments in states[0]["state"].items():
        assert all(torch.equal(moments[k], states[1]["state"][key][k]) for k in ("exp_avg", "exp_avg_sq"))


def test_another_config_is_not_resumed(whole, scene_records):
    config = config_for(scene_records, whole, seed=1)
    with pytest.raises(MmdoraError, match=r"training\.seed: 0 -> 1"):
        train(config, resume=True)


def test_a_finished_folder_is_not_overwritten(whole, scene_records):
    with pytest.raises(MmdoraError, match="holds a run"):
        train(config_for(scene_records, whole))


def test_nothing_to_resume(scene_records, tmp_path):
    with pytest.raises(MmdoraError, match="no checkpoint"):
        train(config_for(scene_records, tmp_path / "none"), resume=True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"save_every": 4}, "must be a multiple"),
        ({"eval_every": None}, "eval_every is not"),
    ],
)
def test_schedules_that_do_not_fit(scene_records, tmp_path, change, message):
    with pytest.raises(MmdoraError, match=message):
        train(config_for(scene_records, tmp_path / "x", **change))


def test_output_that_is_a_file(scene_records, tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(MmdoraError, match="is a file"):
        train(config_for(scene_records, tmp_path / "file"))


def test_nothing_to_train(scene_records, tmp_path):
    config = config_for(scene_records, tmp_path / "x")
    with pytest.raises(MmdoraError, match=r"method .*none"):
        train(replace(config, adapt=type(config.adapt)()))
