"""Short training runs of tiny-llava, for the tests of resume, checkpoints and guards."""

from __future__ import annotations

import json
import os
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from threading import RLock
from typing import Any

import torch
from safetensors.torch import load_file
from scene_rows import draw_scenes
from tqdm import tqdm

from mmdora.cli import main
from mmdora.config import RunConfig, validate
from mmdora.records.reader import write_records
from mmdora.train.run import LOG

SPEED = ("runtime", "per_second", "_s")  # Parts of the names of logged times, such as samples_per_s and forward_s.
EVERY_TWO: dict[str, Any] = {"steps": 6, "eval_every": 2, "save_every": 2, "log_every": 2}
"""The schedule of the run that `train/conftest.py` makes."""


def first_turns(records: Path, rows: int) -> Path:
    """Write the first rows with only their first question, so that steps take little time."""
    path = records.parent / f"first-{rows}.jsonl"
    if not path.exists():  # A new file would have to be read anew, which tests with a full disk cannot do.
        kept = [json.loads(line) for line in records.read_text().splitlines()[:rows]]
        path.write_text("".join(json.dumps(row | {"messages": row["messages"][:2]}) + "\n" for row in kept))
    return path


def held_out_of(records: Path, rows: int = 3) -> Path:
    """Draw scenes that are not among the records, each with one question, because no row may be trained on too."""
    path = records.with_name(f"held-out-{rows}.jsonl")
    if not path.exists():
        write_records(path, draw_scenes(path.parent, range(1000, 1000 + rows), questions=1))
    return path


def tree_for(records: Path, output: Path, *, evaluates: bool = True, **training: Any) -> dict[str, Any]:
    """A config as a dict: 8 steps of four rows in two micro-batches, with dropout in the language model."""
    evaluation = {"eval": str(held_out_of(records)), "eval_rows": 2} if evaluates else {}
    training = ({} if evaluates else {"eval_every": None}) | training
    return {
        "adapt": {
            "vision": {"method": "dora", "rank": 2, "targets": ["attention"], "lr": 3e-4},
            "projector": {"method": "full", "lr": 1e-4},
            "language": {"method": "dora", "rank": 4, "targets": ["attention"], "dropout": 0.1, "magnitude_lr": 1e-3},
        },
        "data": {"train": str(records), **evaluation},
        "training": {"output": str(output), "steps": 8, "batch_size": 2, "accumulation": 2, "lr": 5e-4, "log_every": 1,
                     "eval_every": 3, "save_every": 3} | training,
    }  # fmt: skip


def config_of(tree: dict[str, Any]) -> RunConfig:
    return validate(RunConfig, tree, where=lambda key: "test")


def config_for(records: Path, output: Path, **training: Any) -> RunConfig:
    """The config of `tree_for`."""
    return config_of(tree_for(records, output, **training))


def silent(line: str) -> None:
    """Print nothing; the `say` of runs whose messages do not matter."""


def curve(run: Path) -> list[dict[str, Any]]:
    """The log of a run without times. NaN and infinity in it are an error, because they are not JSON."""
    entries = [json.loads(line, parse_constant=_refuse) for line in (run / LOG).read_text().splitlines()]
    return [{k: v for k, v in entry.items() if not any(word in k for word in SPEED)} for entry in entries]


def _refuse(constant: str) -> None:
    raise AssertionError(f"{constant} in {LOG}")


def same_tensors(ours: Path, theirs: Path) -> bool:
    """Whether two safetensors files hold the same tensors, bit for bit."""
    one, other = load_file(ours), load_file(theirs)
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def same_run(ours: Path, theirs: Path) -> bool:
    """Whether two complete runs logged the same and ended in the same adapter."""
    adapter = Path("adapter", "adapter_model.safetensors")
    return curve(ours) == curve(theirs) and same_tensors(ours / adapter, theirs / adapter)


def contents(folder: Path) -> dict[str, bytes]:
    """Relative path -> content, for every file below a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def forked(command: list[str], stderr: Path, before: Callable[[], None] | None = None) -> int:
    """Start `mmdora COMMAND` in a forked process, which need not import torch again; gives its id."""
    sys.stdout.flush()
    if child := os.fork():
        return child
    code = 70
    try:
        null, told = os.open(os.devnull, os.O_WRONLY), os.open(stderr, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(null, 1)
        os.dup2(told, 2)
        sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", closefd=False)
        os.setsid()
        # tqdm's lock is shared by processes, and a child that is killed while holding it would stop all others.
        tqdm.set_lock(RLock())
        if before is not None:
            before()
        code = main(command)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def exit_code(child: int) -> int:
    """Wait for a process; gives its exit code, or the negative number of the signal that ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def until(there: Callable[[], object], told: Path) -> None:
    """Wait until a forked process has come as far as `there` says; what it wrote to `told` explains a failure."""
    deadline = time.monotonic() + 120
    while not there():
        assert time.monotonic() < deadline, told.read_text()
        time.sleep(0.002)
