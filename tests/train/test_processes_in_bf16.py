"""bf16 in two processes over gloo, with DDP and FSDP2, is bf16 in one process; either goes on where another stopped."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from processes import finished, launched
from safetensors.torch import load_file
from tiny_run import config_of, curve, first_turns, silent, tree_for

from mmdora.train import train
from mmdora.train.saving import Checkpoints

ADAPTER = "adapter/adapter_model.safetensors"
CLOSE = 2**-8
"""What losses may differ by, relative: half a step of bf16, in which products are rounded. Where parameters are
sharded, a micro-batch of text has a masked row beside it, so a product has other rows and sums in another order."""


@pytest.fixture(scope="module")
def records(scene_records: Path) -> Path:
    """Eight rows, one of them text only."""
    return first_turns(scene_records, 8)


def tree(records: Path, output: Path, **training: Any) -> dict[str, Any]:
    """4 steps of four rows on a base in bf16, with a projector that is trained whole; 2 of them with an optimizer."""
    found = tree_for(records, output, evaluates=False, precision="bf16", **{"steps": 4, "save_every": 2} | training)
    found["model"] = {"base": "tiny-llava", "dtype": "bf16"}
    found["adapt"]["language"] |= {"dropout": 0.0, "method": "lora"}
    found["adapt"]["language"].pop("magnitude_lr")
    return found


def two(values: dict[str, Any], *more: str, fsdp: bool = False) -> Path:
    """Train in two processes with half the accumulation; each notes the dtypes it computes and reduces in."""
    output = Path(values["training"]["output"])
    values["training"] |= {"accumulation": 1}
    (path := output.with_suffix(".yaml")).write_text(yaml.safe_dump(values))

    def before(index: int) -> None:
        if fsdp:
            os.environ |= {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "FSDP_RESHARD_AFTER_FORWARD": "true"}
            os.environ |= {"FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP", "FSDP_STATE_DICT_TYPE": "FULL_STATE_DICT"}
        write_result = Checkpoints.write_result

        def noting(self, folder, best):
            trained = [p for p in self.trained.model.parameters() if p.requires_grad]
            found = {"dtypes": {str(p.dtype) for p in trained}, "kinds": {type(p.data).__name__ for p in trained}}
            (output.parent / f"{output.name}-{index}.json").write_text(json.dumps({k: [*v] for k, v in found.items()}))
            write_result(self, folder, best)

        Checkpoints.write_result = noting

    told = output.parent / f"{output.name}-told"
    codes = finished(launched(["train", str(path), *more], told, 2, before))
    assert codes == [0, 0], [(told / f"{index}.stderr").read_text()[-3000:] for index in range(2)]
    return output


def noted(run: Path) -> list[dict[str, list[str]]]:
    return [json.loads((run.parent / f"{run.name}-{index}.json").read_text()) for index in (0, 1)]


def losses(run: Path) -> list[float]:
    return [entry["loss"] for entry in curve(run) if "loss" in entry]


def same(ours: Path, theirs: Path) -> None:
    assert losses(ours) == pytest.approx(losses(theirs), rel=CLOSE)
    one, other = (load_file(run / ADAPTER) for run in (ours, theirs))
    assert one.keys() == other.keys() and {tensor.dtype for tensor in one.values()} == {torch.float32}
    # An update of AdamW is at most the learning rate, whatever the gradient; four of them, in either direction.
    assert all((one[key] - other[key]).abs().max() <= 8e-3 for key in one)


def rewound(run: Path, output: Path) -> Path:
    """A copy of a run as it was after step 2."""
    shutil.copytree(run, output, ignore=shutil.ignore_patterns("checkpoint-4", "complete.json", "adapter"))
    return output


@pytest.fixture(scope="module")
def alone(records: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(config_of(tree(records, tmp_path_factory.mktemp("alone") / "run")), say=silent)


@pytest.fixture(scope="module")
def sharded(records: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return two(tree(records, tmp_path_factory.mktemp("sharded") / "run"), fsdp=True)


def test_two_processes_are_one(records: Path, alone: Path, tmp_path: Path) -> None:
    same(two(tree(records, tmp_path / "run")), alone)


def test_sharded_processes_are_one(alone: Path, sharded: Path) -> None:
    same(sharded, alone)
    assert noted(sharded) == [{"dtypes": ["torch.float32"], "kinds": ["DTensor"]}] * 2


def test_one_process_goes_on_where_sharded_ones_stopped(records: Path, alone: Path, sharded: Path, tmp_path: Path):
    run = rewound(sharded, tmp_path / "run")
    same(train(config_of(tree(records, run)), resume=True, say=silent), alone)


def test_sharded_processes_go_on_where_one_stopped(records: Path, alone: Path, tmp_path: Path) -> None:
    run = rewound(alone, tmp_path / "run")
    same(two(tree(records, run), "--resume", fsdp=True), alone)
