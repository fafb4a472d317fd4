"""What a checkpoint is: its manifest, what damage to it is named, which are kept."""

import errno
import hashlib
import json
import os
import re
from pathlib import Path

import pytest
import torch
import yaml
from peak_memory import NEEDS_PROC
from tiny_run import contents, silent

import mmdora
from mmdora.adapter_files import adapters
from mmdora.config import load_config
from mmdora.errors import MmdoraError
from mmdora.train import saving
from mmdora.train.checkpoint import best_of, best_problem, checkpoints, manifest_of, newest, rotate, seal, staged
from mmdora.train.optimizer import prepare
from mmdora.train.processes import Processes
from mmdora.train.progress import Losses, Progress


def write(output: Path, step: int, files: dict[str, bytes] | None = None) -> Path:
    """A whole checkpoint of small files."""
    with staged(output, step) as folder:
        (folder / "inner").mkdir(parents=True)
        for name, content in (files or {"a.bin": b"a" * 100, "inner/b.json": b"{}"}).items():
            (folder / name).write_bytes(content)
        return seal(folder, {"step": step})


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
    assert best_of(here) == tmp_path / "checkpoint-2" and "checkpoint-2 is missing" in (best_problem(here) or "")
    write(tmp_path, 2)
    assert best_of(here) == tmp_path / "checkpoint-2" and best_problem(here) is None


def test_an_error_of_the_program_is_not_taken_for_a_full_disk(tmp_path):
    with pytest.raises(RuntimeError, match="shapes"), staged(tmp_path, 5):
        raise RuntimeError("shapes do not match")
    full = r"checkpoint-5: saving failed after 7 bytes \(No space left"
    with pytest.raises(MmdoraError, match=full), staged(tmp_path, 5) as folder:
        folder.mkdir(parents=True)
        (folder / "a").write_bytes(b"1234567")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert not (tmp_path / ".saving").exists()


def test_saving_copies_no_tensor(tiny_llava, tmp_path, monkeypatch):
    """A copy of the adapter would take memory that nobody estimated; only tied tensors, stored twice, need one."""
    model, _ = mmdora.load(tiny_llava)
    mmdora.inject(model, {"projector": {"method": "full"}, "language": {"method": "dora", "rank": 4}})
    saved: dict[str, torch.Tensor] = {}
    write = adapters.save_file
    monkeypatch.setattr(adapters, "save_file", lambda tensors, *more, **with_: saved.update(tensors) or write(
        tensors, *more, **with_))  # fmt: skip
    mmdora.save_adapter(model, tmp_path / "adapter", base=tiny_llava)
    own = {parameter.data_ptr() for parameter in model.parameters()}
    assert len(saved) > 10 and {tensor.data_ptr() for tensor in saved.values()} <= own
    tied = adapters._apart({"a": model.lm_head.weight, "b": model.lm_head.weight})
    assert tied["a"].data_ptr() != tied["b"].data_ptr() and torch.equal(tied["a"], tied["b"])


@NEEDS_PROC
def test_the_optimizers_file_is_mapped(stopped, monkeypatch):
    """What is read from it takes no memory beside the state that it is copied to."""
    read: list[dict[str, torch.Tensor]] = []
    load = torch.load

    def loading(path, **how):
        found = load(path, **how)
        read.append(found) if Path(path).name == saving.OPTIMIZER else None
        return found

    monkeypatch.setattr(torch, "load", loading)
    config = load_config(stopped / "config.yaml")
    processes = Processes(config.training)
    model, _ = mmdora.load(config.base)
    mmdora.inject(model, config.adapt)
    trained = prepare(model, config, processes, 6, stopped / "checkpoint-4")
    facts = {"measured": "nothing"}
    saving.Checkpoints(config, processes, trained, facts, None).restore(
        stopped / "checkpoint-4", Progress(max_steps=6), Losses(processes)
    )
    (state,) = read
    tensors = [value for kept in state["state"].values() for value in kept.values() if value.ndim]
    begin, end = mapped_range(stopped / "checkpoint-4" / saving.OPTIMIZER)
    assert tensors and all(begin <= tensor.data_ptr() < end for tensor in tensors)


def mapped_range(path: Path) -> tuple[int, int]:
    """First address of a file's mapping into this process, and the one after its last."""
    lines = [line for line in Path("/proc/self/maps").read_text().splitlines() if line.endswith(str(path))]
    spans = [tuple(int(end, 16) for end in line.split()[0].split("-")) for line in lines]
    return min(begin for begin, _ in spans), max(end for _, end in spans)
