"""On two CUDA devices or more: training with FSDP2 is training with one GPU, and either resumes the other."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file
from tiny_run import tree_for

from mmdora.data_prep import easy_vqa

FSDP2 = Path("configs/accelerate/8_gpus_fsdp2.yaml")


@pytest.fixture(scope="module", autouse=True)
def _two() -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two CUDA devices")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("easy_vqa")
    easy_vqa.prepare(out)
    return out / "train.jsonl"


def train(folder: Path, data: Path, processes: int, *more: str, **training: object) -> Path:
    """8 steps of 8 rows in FOLDER/run; with two processes by accelerate and the committed config."""
    tree = tree_for(data, folder / "run", evaluates=False, batch_size=4, accumulation=2 // processes, **training)
    tree["adapt"]["language"]["dropout"] = 0.0
    folder.mkdir(exist_ok=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(tree))
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(FSDP2), "--num_processes", "2"]
    command = [*(launch if processes == 2 else [sys.executable]), "-m", "mmdora", "train", str(folder / "config.yaml")]
    environment = os.environ | ({"CUDA_VISIBLE_DEVICES": "0"} if processes == 1 else {})
    subprocess.run([*command, *more], check=True, env=environment)
    return folder / "run"


def losses(run: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (run / "log.jsonl").read_text().splitlines() if '"loss"' in line]


def test_sharded_is_one_gpu_and_goes_on_as_one(data: Path, tmp_path: Path) -> None:
    alone, sharded = train(tmp_path / "alone", data, 1), train(tmp_path / "sharded", data, 2)
    assert losses(sharded) == pytest.approx(losses(alone), rel=1e-4)
    ours, theirs = (load_file(run / "adapter/adapter_model.safetensors") for run in (sharded, alone))
    assert ours.keys() == theirs.keys()
    assert all((ours[name] - theirs[name]).abs().max() <= 1e-3 for name in theirs)
    further = train(tmp_path / "sharded", data, 1, "--resume", "--allow-changes", steps=12)
    assert len(losses(further)) == 12
