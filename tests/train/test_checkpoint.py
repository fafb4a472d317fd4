"""Checkpoints under damage, kills and full disks; and what a resumed run may differ in."""

import errno
import hashlib
import importlib.util
import itertools
import json
import os
import random
import re
import resource
import shutil
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from safetensors.torch import load_file, save_file
from tiny_run import config_for, config_of, contents, exit_code, first_turns, forked, same_run, silent, tree_for

import mmdora
from mmdora.cli import main
from mmdora.errors import Interrupted, MmdoraError
from mmdora.train import train
from mmdora.train.checkpoint import best_of, checkpoints, manifest_of, newest, rotate, seal, staged
from mmdora.train.resume import find_checkpoint
from mmdora.train.trainer import AdapterTrainer

EVERY_TWO: dict[str, Any] = {"steps": 6, "eval_every": 2, "save_every": 2, "log_every": 2}


class StopError(Exception):
    """Ends a run in a test."""


def write(output: Path, step: int, files: dict[str, bytes] | None = None) -> Path:
    """A whole checkpoint of small files."""
    with staged(output, step) as folder:
        (folder / "inner").mkdir(parents=True)
        for name, content in (files or {"a.bin": b"a" * 100, "inner/b.json": b"{}"}).items():
            (folder / name).write_bytes(content)
        return seal(folder, {"step": step})


@pytest.fixture(scope="module")
def records(scene_records):
    return first_turns(scene_records, 10)


@pytest.fixture(scope="module")
def whole(records, tmp_path_factory):
    """An undisturbed run of 6 steps."""
    return train(config_for(records, tmp_path_factory.mktemp("runs") / "whole", **EVERY_TWO), say=silent)


@pytest.fixture(scope="module")
def ended_in_step_6(records, tmp_path_factory):
    """The same run, stopped in step 6, with checkpoints of steps 2 and 4."""
    output = tmp_path_factory.mktemp("runs") / "ended"
    step = AdapterTrainer.training_step

    def stopping(self, *args, **kwargs):
        if self.state.global_step == 5:
            raise StopError
        return step(self, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(AdapterTrainer, "training_step", stopping)
        with pytest.raises(StopError):
            train(config_for(records, output, **EVERY_TWO), say=silent)
    assert [path.name for path in checkpoints(output)] == ["checkpoint-4", "checkpoint-2"]
    return output


@pytest.fixture
def stopped(ended_in_step_6, tmp_path):
    return shutil.copytree(ended_in_step_6, tmp_path / "run")


# --- what a checkpoint is


def test_the_manifest_lists_what_is_there(stopped):
    manifest = json.loads((stopped / "checkpoint-4" / "manifest.json").read_text())
    found = contents(stopped / "checkpoint-4")
    del found["manifest.json"]
    assert {name: (e["bytes"], e["sha256"]) for name, e in manifest["files"].items()} == {
        name: (len(content), hashlib.sha256(content).hexdigest()) for name, content in found.items()
    }
    assert {"adapter_model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth"} < found.keys()
    assert manifest["step"] == 4 and manifest["base"]["structure"] and "dora" in manifest["plan"]
    data = yaml.safe_load((stopped / "config.yaml").read_text())["data"]
    assert manifest["data"] == {
        data[key]: hashlib.sha256(Path(data[key]).read_bytes()).hexdigest() for key in ("train", "eval")
    }


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda c: os.truncate(c / "a.bin", 50), r"a\.bin has 50 bytes instead of 100"),
        (lambda c: (c / "a.bin").write_bytes(b"a" * 99 + b"b"), r"the content of a\.bin is not"),
        (lambda c: (c / "a.bin").unlink(), r"a\.bin is missing"),
        (lambda c: (c / "inner" / "b.json").write_bytes(b""), r"inner/b\.json has 0 bytes instead of 2"),
        (lambda c: (c / "manifest.json").unlink(), r"manifest\.json is missing"),
        (lambda c: os.truncate(c / "manifest.json", 40), r"manifest\.json is missing or unreadable"),
        (lambda c: (c / "manifest.json").write_text('{"files": {"a.bin": 1}}'), "unreadable"),
        (lambda c: (c / "manifest.json").write_text("[]"), "unreadable"),
    ],
)
def test_damage_is_named_and_passed_over(tmp_path, damage, said):
    older, damaged = write(tmp_path, 9), write(tmp_path, 10)
    assert newest(tmp_path, silent) == damaged
    damage(damaged)
    with pytest.raises(MmdoraError, match=f"checkpoint-10.*{said}"):
        manifest_of(damaged)
    lines: list[str] = []
    assert newest(tmp_path, lines.append) == older
    assert len(lines) == 1 and re.search(f"warning: .*checkpoint-10.*{said}.*passed over", lines[0])


def test_a_damaged_one_is_replaced(tmp_path):
    write(tmp_path, 5)
    os.truncate(tmp_path / "checkpoint-5" / "a.bin", 3)
    (tmp_path / "checkpoint-5" / "left-over").write_text("x")
    assert contents(write(tmp_path, 5)).keys() == {"a.bin", "inner/b.json", "manifest.json"}
    assert newest(tmp_path, silent) == tmp_path / "checkpoint-5" and not (tmp_path / ".saving").exists()


@pytest.mark.parametrize(
    ("steps", "written", "keep", "best", "left"),
    [
        ((5, 10, 15, 20), 20, 2, None, (15, 20)),
        ((5, 10, 15, 20), 20, 2, 5, (5, 15, 20)),
        ((5, 10, 15, 20), 20, 2, 15, (15, 20)),
        ((5, 10, 15, 20), 20, 1, 20, (20,)),
        ((5, 10, 100), 100, 2, None, (10, 100)),  # by number, not by name
        ((5, 10, 17), 10, 1, 5, (5, 10)),  # 17 was damaged and passed over: never at the cost of 10
        ((5,), 5, 3, None, (5,)),
    ],
)
def test_rotation_keeps_the_newest_and_the_best(tmp_path, steps, written, keep, best, left):
    for step in steps:
        write(tmp_path, step)
    rotate(tmp_path / f"checkpoint-{written}", keep, tmp_path / f"checkpoint-{best}" if best else None)
    assert sorted(int(path.name.split("-")[1]) for path in checkpoints(tmp_path)) == list(left)


def test_the_best_is_found_in_a_run_folder_that_was_moved(tmp_path):
    state = {"best_model_checkpoint": "/nowhere/run/checkpoint-2", "global_step": 4}
    here = write(tmp_path, 4, {"trainer_state.json": json.dumps(state).encode()})
    assert best_of(here) is None
    write(tmp_path, 2)
    assert best_of(here) == tmp_path / "checkpoint-2"


def test_an_error_of_the_program_is_not_taken_for_a_full_disk(tmp_path):
    with pytest.raises(RuntimeError, match="shapes"), staged(tmp_path, 5):
        raise RuntimeError("shapes do not match")
    full = r"checkpoint-5: saving failed after 7 bytes \(No space left"
    with pytest.raises(MmdoraError, match=full), staged(tmp_path, 5) as folder:
        folder.mkdir(parents=True)
        (folder / "a").write_bytes(b"1234567")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert not (tmp_path / ".saving").exists()


# --- kills inside a save, and full disks


def load_faults(monkeypatch):
    """benchmarks/faults.py as a module."""
    path = Path(mmdora.__file__).parents[1] / "benchmarks" / "faults.py"
    spec = importlib.util.spec_from_file_location("faults", path)
    assert spec and spec.loader
    faults = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "faults", faults)
    spec.loader.exec_module(faults)
    return faults


def test_a_kill_before_any_file_operation_of_a_save(stopped, records, whole, tmp_path, monkeypatch):
    """A real save, killed before each of its file operations in turn: the newest is whole, the old or the new one."""
    faults, save, told = load_faults(monkeypatch), AdapterTrainer._save_checkpoint, tmp_path / "operation"
    outcomes: list[tuple[str, str]] = []  # operation, newest checkpoint after the kill

    def save_until(number: int, python: Any, trainer, *rest) -> None:
        operations = itertools.count()
        file = os.open(told, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)

        def before(step: int, operation: str) -> None:
            if next(operations) == number:
                os.write(file, operation.encode())
                os.kill(os.getpid(), signal.SIGKILL)

        random.setstate(python)  # a fork draws new numbers
        AdapterTrainer._save_checkpoint = save
        faults.watch_saves(before)
        trainer._save_checkpoint(*rest)

    def saves_killed_everywhere(trainer, *rest):
        before, kept = contents(stopped), shutil.copytree(stopped, tmp_path / "kept")
        killed = True
        while killed:
            python = random.getstate()
            if not (process := os.fork()):
                try:
                    save_until(len(outcomes), python, trainer, *rest)
                finally:
                    os._exit(0)
            if killed := exit_code(process) == -signal.SIGKILL:
                found = newest(stopped, silent)
                assert found is not None
                outcomes.append((told.read_text(), found.name))
                if found.name == "checkpoint-4":
                    after = contents(stopped)
                    assert all(after[name] == before[name] for name in before if name.startswith("checkpoint-"))
                for name in ("adapter_model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth"):
                    assert (found / name).read_bytes() == (whole / found.name / name).read_bytes()
            shutil.rmtree(stopped)
            shutil.copytree(kept, stopped)
        save(trainer, *rest)

    monkeypatch.setattr(AdapterTrainer, "_save_checkpoint", saves_killed_everywhere)
    run = train(config_for(records, stopped, **EVERY_TWO, keep=1), resume=True, say=silent)
    operations, found = zip(*outcomes, strict=True)
    place = operations.index("rename to checkpoint") + 1
    assert found == ("checkpoint-4",) * place + ("checkpoint-6",) * (len(found) - place)
    flushed = {"fsync optimizer.pt", "fsync adapter_model.safetensors", "fsync manifest.json", "fsync checkpoint"}
    others = {"torch.save optimizer.pt", "open manifest.json", "fsync run", "rmdir .saving", "rmtree older checkpoint"}
    assert flushed <= set(operations[:place]) and others <= set(operations) and len(operations) > 40
    assert same_run(run, whole)


@pytest.mark.parametrize(
    ("breaks", "said"),
    [
        ("checkpoint-4/adapter_model.safetensors", r"run/checkpoint-6: saving failed after [\d,]+ bytes \(.*too large"),
        ("checkpoint-4/optimizer.pt", r"run/checkpoint-6: saving failed after [\d,]+ bytes \("),
        ("log.jsonl", r"run: File too large"),
    ],
)
def test_a_full_disk(stopped, records, whole, tmp_path, breaks, said):
    """No file may grow to the size of this one: what a disk does when it is full."""
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump(tree_for(records, stopped, **EVERY_TWO)))
    before = {name: content for name, content in contents(stopped).items() if name.startswith("checkpoint-")}
    limit = (stopped / breaks).stat().st_size - 1
    child = forked(
        ["train", str(config), "--resume"],
        tmp_path / "stderr",
        lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
    )
    assert exit_code(child) == 2
    told = (tmp_path / "stderr").read_text()
    assert re.fullmatch(rf"mmdora: error: \S+/{said}.* [\d,]+ bytes are free on that disk.*", told.splitlines()[-1])
    assert "Traceback" not in told and "terminate called" not in told
    assert before == {name: content for name, content in contents(stopped).items() if name.startswith("checkpoint-")}
    assert yaml.safe_load((stopped / "config.yaml").read_text())["training"]["steps"] == 6
    assert not (stopped / ".saving").exists() and not (stopped / "complete.json").exists()
    assert same_run(train(config_for(records, stopped, **EVERY_TWO), resume=True, say=silent), whole)


# --- what is resumed


def test_a_truncated_adapter_is_passed_over(stopped, records, whole):
    os.truncate(stopped / "checkpoint-4" / "adapter_model.safetensors", 1000)
    lines: list[str] = []
    run = train(config_for(records, stopped, **EVERY_TWO), resume=True, say=lines.append)
    assert any(re.search(r"checkpoint-4 is damaged: adapter_model.safetensors has 1,000 bytes", line) for line in lines)
    assert same_run(run, whole)
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


def test_no_whole_checkpoint_is_no_reason_to_begin_anew(stopped, records, tmp_path, capsys):
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump(tree_for(records, stopped, **EVERY_TWO)))
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
def test_another_run_is_shown_and_refused(stopped, records, tmp_path, capsys, change, said):
    config, before = tmp_path / "config.yaml", contents(stopped)
    config.write_text(yaml.safe_dump(tree_for(records, stopped, **EVERY_TWO)))
    told = refused(["train", str(config), "--resume", *change], capsys)
    assert said in told and "--allow-changes" in told and str(stopped) in told
    assert contents(stopped) == before


def test_other_data_or_another_base_in_the_same_place(records, tmp_path, tiny_llava):
    data, base = tmp_path / "data", shutil.copytree(tiny_llava, tmp_path / "base")
    shutil.copytree(records.parent, data)
    tree = tree_for(data / records.name, tmp_path / "run", steps=1, save_every=1, eval_every=1)
    config = config_of({**tree, "model": {"base": str(base)}})
    train(config, say=silent)
    lines = (data / records.name).read_text().splitlines(keepends=True)
    (data / records.name).write_text("".join(reversed(lines)))
    with pytest.raises(MmdoraError, match=f"not the run in .*the content of {data / records.name};"):
        train(config, resume=True, say=silent)
    (data / records.name).write_text("".join(lines))
    weights = base / "model.safetensors"
    save_file({name: tensor * 1.25 for name, tensor in load_file(weights).items()}, weights, {"format": "pt"})
    with pytest.raises(MmdoraError, match=r"not the run in .*the base: its \S+ has other values"):
        train(config, resume=True, say=silent)


def test_changes_that_are_allowed(stopped, records, tmp_path, capsys):
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump(tree_for(records, stopped, **EVERY_TWO)))
    assert main(["train", str(config), "--resume", "--allow-changes", "--training.lr", "1e-3"]) == 0
    assert "warning: resuming although this changed: training.lr: 0.0005 -> 0.001" in capsys.readouterr().out
    assert json.loads((stopped / "complete.json").read_text())["steps"] == 6


def test_a_complete_run_is_extended(whole, records, tmp_path, monkeypatch):
    run, step = shutil.copytree(whole, tmp_path / "run"), AdapterTrainer.training_step

    def not_complete(self, *args, **kwargs):
        assert not (run / "complete.json").exists()
        return step(self, *args, **kwargs)

    monkeypatch.setattr(AdapterTrainer, "training_step", not_complete)
    train(config_for(records, run, **EVERY_TWO | {"steps": 8}), resume=True, allow_changes=True, say=silent)
    assert json.loads((run / "complete.json").read_text())["steps"] == 8
    assert newest(run, silent) == run / "checkpoint-8"


def test_the_best_outlives_rotation_signals_and_a_move(records, tmp_path, monkeypatch):
    """Step 2 is the best of the regular checkpoints; step 3 is better, but saved only because of a signal."""
    losses, evaluate = {1: 9.0, 2: 1.0, 3: 0.5, 4: 3.0, 5: 4.0, 6: 5.0}, AdapterTrainer.evaluate

    def evaluated(self, *args, **kwargs):
        metrics = evaluate(self, *args, **kwargs) | {"eval_loss": losses[self.state.global_step]}
        self.state.log_history[-1]["eval_loss"] = metrics["eval_loss"]
        return metrics

    step = AdapterTrainer.training_step

    def signalled(self, *args, **kwargs):
        if self.state.global_step == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(self, *args, **kwargs)

    monkeypatch.setattr(AdapterTrainer, "evaluate", evaluated)
    schedule = {"steps": 6, "eval_every": 1, "save_every": 2, "keep": 1}
    with monkeypatch.context() as patched:
        patched.setattr(AdapterTrainer, "training_step", signalled)
        with pytest.raises(Interrupted):
            train(config_for(records, tmp_path / "run", **schedule), say=silent)
    assert {path.name for path in checkpoints(tmp_path / "run")} == {"checkpoint-2", "checkpoint-3"}
    best = (tmp_path / "run" / "checkpoint-2" / "adapter_model.safetensors").read_bytes()
    (tmp_path / "run").rename(tmp_path / "moved")
    run = train(config_for(records, tmp_path / "moved", **schedule), resume=True, say=silent)
    assert {path.name for path in checkpoints(run)} == {"checkpoint-2", "checkpoint-6"}
    assert (run / "adapter" / "adapter_model.safetensors").read_bytes() == best
    assert json.loads((run / "complete.json").read_text())["best_eval_loss"] == 1.0
