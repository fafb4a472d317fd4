"""What a run is resumed from, and what it may differ in."""

import hashlib
import json
import os
import re
import shutil
import signal
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from tiny_run import EVERY_TWO, config_for, config_of, contents, curve, same_run, silent, tree_for
from transformers.trainer_callback import TrainerState

from mmdora.cli import main
from mmdora.errors import Interrupted, MmdoraError
from mmdora.train import train
from mmdora.train.checkpoint import checkpoints, manifest_of, newest
from mmdora.train.evaluation import Evaluation
from mmdora.train.optimizer import check_state
from mmdora.train.resume import check_changes, find_checkpoint
from mmdora.train.steps import Steps


def test_a_truncated_adapter_is_passed_over(stopped, ten_rows, six_steps):
    os.truncate(stopped / "checkpoint-4" / "adapter_model.safetensors", 1000)
    lines: list[str] = []
    run = train(config_for(ten_rows, stopped, **EVERY_TWO), resume=True, say=lines.append)
    assert any(re.search(r"checkpoint-4 is damaged: adapter_model.safetensors has 1,000 bytes", line) for line in lines)
    assert same_run(run, six_steps)
    assert manifest_of(run / "checkpoint-4")["step"] == 4  # the damaged one was replaced


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        (lambda run: (run / "checkpoint-4" / "trainer_state.json").write_bytes(b""), "trainer_state.json has 0 bytes"),
        (lambda run: (run / "checkpoint-4" / "optimizer.pt").unlink(), "optimizer.pt is missing"),
        (lambda run: (run / "checkpoint-4" / "manifest.json").unlink(), "manifest.json is missing"),
    ],
)
def test_damage_that_a_resume_finds(stopped, damage, named):
    damage(stopped)
    lines: list[str] = []
    checkpoint, before = find_checkpoint(stopped, True, lines.append)
    assert checkpoint == stopped / "checkpoint-2" and before and before["step"] == 2
    assert len(lines) == 1 and named in lines[0]
    with pytest.raises(MmdoraError, match=named):
        find_checkpoint(stopped, stopped / "checkpoint-4", silent)


def refused(arguments: list[str], capsys) -> str:
    """The one line of a command that is refused."""
    assert main(arguments) == 2
    told = capsys.readouterr().err
    assert len(told.splitlines()) == 1 and told.startswith("mmdora: error: ")
    return told


def test_no_whole_checkpoint_is_no_reason_to_begin_anew(stopped, ten_rows, tmp_path, capsys):
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump(tree_for(ten_rows, stopped, **EVERY_TWO)))
    for step in (2, 4):
        (stopped / f"checkpoint-{step}" / "optimizer.pt").unlink()
    before = contents(stopped)
    assert "no checkpoint in" in refused(["train", str(config), "--resume"], capsys)
    assert contents(stopped) == before


def test_a_run_killed_before_its_first_checkpoint_begins_anew(stopped, tmp_path):
    for step in (2, 4):
        shutil.rmtree(stopped / f"checkpoint-{step}")
    lines: list[str] = []
    checkpoint, before = find_checkpoint(stopped, True, lines.append)
    assert checkpoint is None and before and before["config"]["training"]["steps"] == 6
    assert lines == [f"{stopped} has no checkpoint yet: starting from the beginning"]


def test_going_back_does_not_leave_what_is_newer_in_the_way(stopped):
    with pytest.raises(MmdoraError, match=r"checkpoint-2: a later --resume would take .*checkpoint-4"):
        find_checkpoint(stopped, stopped / "checkpoint-2", silent)
    (stopped / "checkpoint-4" / "optimizer.pt").unlink()  # a damaged one is in nobody's way
    assert find_checkpoint(stopped, stopped / "checkpoint-2", silent)[0] == stopped / "checkpoint-2"


def test_a_damaged_config_of_the_run(stopped):
    os.truncate(stopped / "config.yaml", 0)
    with pytest.raises(MmdoraError, match=r"config\.yaml is missing or damaged"):
        find_checkpoint(stopped, True, silent)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (["--training.seed", "7"], "training.seed: 0 -> 7"),
        (["--adapt.language.rank", "8"], "adapt.language.rank: 4 -> 8"),
        (["--model.base", "another"], "model.base: 'tiny-llava' -> 'another'"),
    ],
)
def test_another_run_is_shown_and_refused(stopped, ten_rows, tmp_path, capsys, change, said):
    config, before = tmp_path / "config.yaml", contents(stopped)
    config.write_text(yaml.safe_dump(tree_for(ten_rows, stopped, **EVERY_TWO)))
    told = refused(["train", str(config), "--resume", *change], capsys)
    assert said in told and "--allow-changes" in told and str(stopped) in told
    assert contents(stopped) == before


def test_other_data_or_another_base_in_the_same_place(ten_rows, tmp_path, tiny_llava):
    data, base = tmp_path / "data", shutil.copytree(tiny_llava, tmp_path / "base")
    shutil.copytree(ten_rows.parent, data)
    tree = tree_for(data / ten_rows.name, tmp_path / "run", steps=1, save_every=1, eval_every=1)
    config = config_of({**tree, "model": {"base": str(base)}})
    train(config, say=silent)
    lines = (data / ten_rows.name).read_text().splitlines(keepends=True)
    (data / ten_rows.name).write_text("".join(reversed(lines)))
    with pytest.raises(MmdoraError, match=f"not the run in .*the content of {data / ten_rows.name};"):
        train(config, resume=True, say=silent)
    (data / ten_rows.name).write_text("".join(lines))
    weights = base / "model.safetensors"
    save_file({name: tensor * 1.25 for name, tensor in load_file(weights).items()}, weights, {"format": "pt"})
    with pytest.raises(MmdoraError, match=r"not the run in .*the base: its \S+ has other values"):
        train(config, resume=True, say=silent)


def settings_in(checkpoint: Path) -> list[dict[str, Any]]:
    """The settings of each group of parameters in a checkpoint's optimizer."""
    groups = torch.load(checkpoint / "optimizer.pt", weights_only=True)["param_groups"]
    return [{name: value for name, value in group.items() if name != "params"} for group in groups]


def test_changes_that_are_allowed_are_what_the_steps_then_do(stopped, ten_rows, tmp_path, capsys):
    """Learning rates, their schedule and AdamW's settings are those of a run that had them from its beginning."""
    changes = {"lr": 1e-3, "steps": 8, "schedule": "linear", "weight_decay": 0.1, "adam_beta2": 0.9, "adam_eps": 1e-6}
    trees = [tree_for(ten_rows, run, **EVERY_TWO | changes) for run in (stopped, tmp_path / "fresh")]
    for tree in trees:
        tree["adapt"]["projector"]["lr"], tree["adapt"]["language"]["magnitude_lr"] = 7e-4, 5e-3
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump(trees[0]))
    before = settings_in(stopped / "checkpoint-4")
    assert main(["train", str(config), "--resume", "--allow-changes"]) == 0
    assert "warning: resuming although this changed: " in (told := capsys.readouterr().out)
    assert "training.lr: 0.0005 -> 0.001" in told
    assert json.loads((stopped / "complete.json").read_text())["steps"] == 8
    fresh = train(config_of(trees[1]), say=silent)
    for step in (6, 8):
        settings = settings_in(stopped / f"checkpoint-{step}")
        assert settings == settings_in(fresh / f"checkpoint-{step}") != before
    rates = [
        {entry["step"]: entry["learning_rate"] for entry in curve(run) if "learning_rate" in entry}
        for run in (stopped, fresh)
    ]
    assert rates[0][6] == rates[1][6] and rates[0][8] == rates[1][8] and rates[0][4] != rates[1][4]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (["--adapt.language.lora_plus_ratio", "4"], r"other groups of parameters \(language/low_rank, language/low_"),
        (["--adapt.language.rank", "8"], "do not fit"),
        (["--adapt.language.targets", "[mlp]"], "do not fit"),
    ],
)
def test_changes_that_no_saved_state_fits_are_refused_by_name(stopped, ten_rows, tmp_path, capsys, change, said):
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump(tree_for(ten_rows, stopped, **EVERY_TWO)))
    assert main(["train", str(config), "--resume", "--allow-changes", *change]) == 2
    told = capsys.readouterr().err
    assert re.search(said, told) and "Traceback" not in told


@pytest.mark.parametrize(
    ("moment", "shape", "said"),
    [
        ("exp_avg", (2, 3), None),
        ("exp_avg", (3, 2), "is of parameters of other shapes; undo the change of adapt"),
        ("state1", (2, 3), r"is another; undo the change of training\.optimizer"),  # the moments in 8 bits
    ],
)
def test_the_state_of_another_optimizer_is_refused(moment, shape, said):
    optimizer = torch.optim.AdamW([{"name": "language/low_rank", "params": [torch.nn.Parameter(torch.zeros(2, 3))]}])
    state = {**optimizer.state_dict(), "state": {0: {moment: torch.zeros(shape)}}}
    with pytest.raises(MmdoraError, match=f"checkpoint-4: its optimizer {said}") if said else nullcontext():
        check_state(state, optimizer, Path("checkpoint-4"))


def test_results_that_are_measured_in_another_way_are_not_compared(stopped, ten_rows, tmp_path):
    """The best of before was the best on other rows, so the best of the later ones is taken."""
    state = json.loads((stopped / "checkpoint-4" / "trainer_state.json").read_text())
    assert state["best_metric"] is not None and manifest_of(stopped / "checkpoint-4")["results_after"] == 0
    tree = tree_for(ten_rows, stopped, **EVERY_TWO)
    tree["data"]["eval_rows"] = 1
    train(config_of(tree), resume=True, allow_changes=True, say=silent)
    state = json.loads((stopped / "checkpoint-6" / "trainer_state.json").read_text())
    assert (manifest_of(stopped / "checkpoint-6")["results_after"], state["best_global_step"]) == (4, 6)


def test_a_checkpoint_of_before_is_resumed(stopped, ten_rows, six_steps):
    """When training went by transformers' Trainer, its own state was in `trainer_state.json`, which holds more."""
    checkpoint = stopped / "checkpoint-4"
    state, manifest = (json.loads((checkpoint / name).read_text()) for name in ("trainer_state.json", "manifest.json"))
    TrainerState(**state, num_train_epochs=2, train_batch_size=2).save_to_json(str(checkpoint / "trainer_state.json"))
    written = (checkpoint / "trainer_state.json").read_bytes()
    entry = {"bytes": len(written), "sha256": hashlib.sha256(written).hexdigest()}
    assert manifest["files"]["trainer_state.json"]["bytes"] < entry["bytes"]
    manifest["files"]["trainer_state.json"] = entry
    del manifest["sha256"]  # it had none then
    (checkpoint / "manifest.json").write_text(json.dumps(manifest))
    lines: list[str] = []
    assert same_run(train(config_for(ten_rows, stopped, **EVERY_TWO), resume=True, say=lines.append), six_steps)
    assert not [line for line in lines if "passed over" in line]


def test_a_complete_run_is_extended(six_steps, ten_rows, tmp_path, monkeypatch):
    run, step = shutil.copytree(six_steps, tmp_path / "run"), Steps.one_pass

    def not_complete(self, *args, **kwargs):
        assert not (run / "complete.json").exists()
        return step(self, *args, **kwargs)

    monkeypatch.setattr(Steps, "one_pass", not_complete)
    train(config_for(ten_rows, run, **EVERY_TWO | {"steps": 8}), resume=True, allow_changes=True, say=silent)
    assert json.loads((run / "complete.json").read_text())["steps"] == 8
    assert newest(run, silent) == run / "checkpoint-8"


def test_the_best_outlives_rotation_signals_and_a_move(ten_rows, tmp_path, monkeypatch):
    """Step 2 is the best of the regular checkpoints; step 3 is better, but saved only because of a signal."""
    losses, now, evaluate = {1: 9.0, 2: 1.0, 3: 0.5, 4: 3.0, 5: 4.0, 6: 5.0}, [0], Evaluation.run
    step = Steps.one_pass

    def evaluated(self, model, objective, log):
        changed = losses[max(now)]
        return evaluate(self, model, objective, lambda logs: log(logs | {"eval_loss": changed})) | {
            "eval_loss": changed
        }

    def counted(self, *args, **kwargs):
        now.append(self.progress.global_step + 1)
        return step(self, *args, **kwargs)

    def signalled(self, *args, **kwargs):
        if self.progress.global_step == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return counted(self, *args, **kwargs)

    monkeypatch.setattr(Evaluation, "run", evaluated)
    monkeypatch.setattr(Steps, "one_pass", counted)
    schedule = {"steps": 6, "eval_every": 1, "save_every": 2, "keep": 1}
    with monkeypatch.context() as patched:
        patched.setattr(Steps, "one_pass", signalled)
        with pytest.raises(Interrupted):
            train(config_for(ten_rows, tmp_path / "run", **schedule), say=silent)
    assert {path.name for path in checkpoints(tmp_path / "run")} == {"checkpoint-2", "checkpoint-3"}
    best = (tmp_path / "run" / "checkpoint-2" / "adapter_model.safetensors").read_bytes()
    (tmp_path / "run").rename(tmp_path / "moved")
    run = train(config_for(ten_rows, tmp_path / "moved", **schedule), resume=True, say=silent)
    assert {path.name for path in checkpoints(run)} == {"checkpoint-2", "checkpoint-6"}
    assert (run / "adapter" / "adapter_model.safetensors").read_bytes() == best
    assert json.loads((run / "complete.json").read_text())["best_eval_loss"] == 1.0


def test_a_run_moved_with_its_data_is_the_same_run(tmp_path):
    """Saved paths are absolute; what lies as it did from the run folder is the same, if the content is."""

    def config(folder, records="rows.jsonl"):
        return config_for(tmp_path / folder / records, tmp_path / folder / "runs" / "one", evaluates=False)

    def data(folder, content="1"):
        return {"data": {str(tmp_path / folder / "rows.jsonl"): content}}

    before = {"step": 2, "processes": 1, "config": config("here").to_dict(), **data("here")}
    for folder in ("here", "there"):
        check_changes(config(folder), before, {"processes": 1, **data(folder)}, False, silent)
        with pytest.raises(MmdoraError, match="the content of "):
            check_changes(config(folder), before, {"processes": 1, **data(folder, "2")}, False, silent)
        with pytest.raises(MmdoraError, match=r"data\.train: .*rows\.jsonl' -> .*others\.jsonl'"):
            check_changes(config(folder, "others.jsonl"), before, {"processes": 1, "data": {}}, False, silent)
