"""Whole runs in two processes with FSDP2 over gloo: the best checkpoint, SIGTERM and resume, and an export."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from processes import finished, launched
from tiny_run import curve, first_turns, same_tensors, tree_for

import mmdora
from mmdora.train.checkpoint import best_of
from mmdora.train.steps import Steps

pytestmark = pytest.mark.slow

FSDP2 = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP"}
WEIGHTS = "adapter_model.safetensors"


def sharded(records: Path, output: Path, *more: str, stops: bool = False) -> Path:
    """Three steps with an evaluation and a checkpoint each; one process may get SIGTERM in the second."""
    tree = tree_for(records, output, steps=3, accumulation=1, eval_every=1, save_every=1, keep=3, lr=5e-3)
    (path := output.with_suffix(".yaml")).write_text(yaml.safe_dump(tree))

    def before(index: int) -> None:
        os.environ |= FSDP2
        one_pass = Steps.one_pass

        def stopping(self: Any, *args: Any, **kwargs: Any) -> Any:
            if stops and index == 1 and self.progress.global_step == 1:
                os.kill(os.getpid(), signal.SIGTERM)
            return one_pass(self, *args, **kwargs)

        Steps.one_pass = stopping

    told = output.parent / f"{output.name}-told"
    codes = finished(launched(["train", str(path), *more], told, 2, before))
    said = [(told / f"{index}.stderr").read_text()[-3000:] for index in range(2)]
    assert codes == ([143, 143] if stops else [0, 0]), said
    return output


@pytest.fixture(scope="module")
def whole(scene_records: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return sharded(first_turns(scene_records, 8), tmp_path_factory.mktemp("sharded") / "run")


def test_stopped_and_resumed_is_a_run_that_was_not_stopped(scene_records: Path, whole: Path, tmp_path: Path) -> None:
    records, run = first_turns(scene_records, 8), tmp_path / "run"
    sharded(records, run, stops=True)
    assert (run / "checkpoint-2").is_dir() and not (run / "complete.json").exists()
    sharded(records, run, "--resume")
    assert curve(run) == curve(whole)
    assert same_tensors(run / "adapter" / WEIGHTS, whole / "adapter" / WEIGHTS)


def test_the_result_is_the_best_checkpoint(whole: Path) -> None:
    losses = {entry["step"]: entry["eval_loss"] for entry in curve(whole) if "eval_loss" in entry}
    best = best_of(whole / "checkpoint-3")
    assert len(losses) == 3 and best is not None
    assert best.name == f"checkpoint-{min(losses, key=losses.__getitem__)}"
    assert same_tensors(whole / "adapter" / WEIGHTS, best / WEIGHTS)


def test_the_export_is_the_merged_adapter(whole: Path, tmp_path: Path) -> None:
    """It is read without a process group, and compared with the adapter by the export itself."""
    mmdora.export(whole, tmp_path / "merged", say=lambda line: None)
    merged, _ = mmdora.load(tmp_path / "merged")
    adapted, _ = mmdora.load(whole)
    mmdora.merge(adapted)
    theirs = adapted.state_dict()
    assert all(torch.allclose(tensor, theirs[name], atol=1e-6) for name, tensor in merged.state_dict().items())
