"""Kills before every file operation of a save, and full disks: the newest checkpoint is whole."""

import importlib.util
import itertools
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
from tiny_run import EVERY_TWO, config_for, contents, exit_code, forked, same_run, silent, tree_for

import mmdora
from mmdora.train import train
from mmdora.train.checkpoint import newest
from mmdora.train.saving import Checkpoints


def load_killed(monkeypatch):
    """benchmarks/killed.py as a module."""
    path = Path(mmdora.__file__).parents[1] / "benchmarks" / "killed.py"
    spec = importlib.util.spec_from_file_location("killed", path)
    assert spec and spec.loader
    killed = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "killed", killed)
    spec.loader.exec_module(killed)
    return killed


def test_a_kill_before_any_file_operation_of_a_save(stopped, ten_rows, six_steps, tmp_path, monkeypatch):
    """A real save, killed before each of its file operations in turn: the newest is whole, the old or the new one."""
    process_to_kill, save, told = load_killed(monkeypatch), Checkpoints.save, tmp_path / "operation"
    outcomes: list[tuple[str, str]] = []  # operation, newest checkpoint after the kill

    def save_until(number: int, python: Any, checkpoints, *rest) -> None:
        operations = itertools.count()
        file = os.open(told, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)

        def before(step: int, operation: str) -> None:
            if next(operations) == number:
                os.write(file, operation.encode())
                os.kill(os.getpid(), signal.SIGKILL)

        random.setstate(python)  # a fork draws new numbers
        Checkpoints.save = save
        process_to_kill.watch_saves(before)
        checkpoints.save(*rest)

    def saves_killed_everywhere(checkpoints, *rest):
        before, kept = contents(stopped), shutil.copytree(stopped, tmp_path / "kept")
        killed = True
        while killed:
            python = random.getstate()
            if not (process := os.fork()):
                try:
                    save_until(len(outcomes), python, checkpoints, *rest)
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
                    assert (found / name).read_bytes() == (six_steps / found.name / name).read_bytes()
            shutil.rmtree(stopped)
            shutil.copytree(kept, stopped)
        save(checkpoints, *rest)

    monkeypatch.setattr(Checkpoints, "save", saves_killed_everywhere)
    run = train(config_for(ten_rows, stopped, **EVERY_TWO, keep=1), resume=True, say=silent)
    operations, found = zip(*outcomes, strict=True)
    place = operations.index("rename to checkpoint") + 1
    assert found == ("checkpoint-4",) * place + ("checkpoint-6",) * (len(found) - place)
    flushed = {"fsync optimizer.pt", "fsync adapter_model.safetensors", "fsync manifest.json", "fsync checkpoint"}
    others = {"torch.save optimizer.pt", "open manifest.json", "fsync run", "rmdir .saving", "rmtree older checkpoint"}
    assert flushed <= set(operations[:place]) and others <= set(operations) and len(operations) > 40
    assert same_run(run, six_steps)


@pytest.mark.parametrize(
    ("breaks", "said"),
    [
        ("checkpoint-4/adapter_model.safetensors", r"run/checkpoint-6: saving failed after [\d,]+ bytes \(.*too large"),
        ("checkpoint-4/optimizer.pt", r"run/checkpoint-6: saving failed after [\d,]+ bytes \("),
        ("log.jsonl", r"run/config.yaml: File too large"),
    ],
)
def test_a_full_disk(stopped, ten_rows, six_steps, tmp_path, breaks, said):
    """No file may grow to the size of this one: what a disk does when it is full."""
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump(tree_for(ten_rows, stopped, **EVERY_TWO)))
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
    assert same_run(train(config_for(ten_rows, stopped, **EVERY_TWO), resume=True, say=silent), six_steps)
