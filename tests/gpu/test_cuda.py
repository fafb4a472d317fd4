"""On CUDA, in bf16, offline: train, kill, resume, merge. `make gpu-test`; at most 8 minutes."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import mmdora
from mmdora.data_prep import easy_vqa
from mmdora.evaluate.run import evaluate
from mmdora.export.run import export
from mmdora.records.reader import read_records


@pytest.fixture(scope="module", autouse=True)
def _cuda() -> None:
    assert torch.cuda.is_available(), "make gpu-test needs a CUDA device"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("easy_vqa")
    easy_vqa.prepare(out)
    return out


def command(data: Path, output: Path, *more: str) -> list[str]:
    return [sys.executable, "-m", "mmdora", "train", "configs/tiny/dora.yaml", *more,
            "--model.dtype", "bf16", "--training.precision", "bf16", "--training.steps", "120",
            "--training.save_every", "20", "--training.log_every", "1", "--training.gradient_checkpointing", "true",
            "--data.train", str(data / "train.jsonl"), "--training.output", str(output)]  # fmt: skip


def losses(run: Path) -> dict[int, float]:
    entries = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return {entry["step"]: entry["loss"] for entry in entries if "loss" in entry}


@pytest.fixture(scope="module")
def killed_and_resumed(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("runs") / "dora"
    process = subprocess.Popen(command(data, output))
    deadline = time.monotonic() + 180
    while not (output / "checkpoint-40" / "trainer_state.json").exists():
        assert process.poll() is None and time.monotonic() < deadline, "no checkpoint was written"
        time.sleep(0.1)
    process.send_signal(signal.SIGKILL)
    process.wait()
    subprocess.run(command(data, output, "--resume"), check=True)
    return output


def test_it_learns_through_a_kill(killed_and_resumed: Path) -> None:
    curve = losses(killed_and_resumed)
    assert sorted(curve) == list(range(1, 121))
    assert sum(curve[s] for s in range(111, 121)) < 0.6 * sum(curve[s] for s in range(1, 11))
    done = json.loads((killed_and_resumed / "complete.json").read_text())
    assert done["resumed"] and done["device"].startswith("cuda")


def test_what_trains_stays_in_fp32(killed_and_resumed: Path) -> None:
    saved = load_file(killed_and_resumed / "adapter" / "adapter_model.safetensors")
    assert {tensor.dtype for tensor in saved.values()} == {torch.float32}


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_merged_equals_adapted_and_answers(killed_and_resumed: Path, data: Path, tmp_path: Path, dtype: Any) -> None:
    records = read_records(data / "test.jsonl")
    rows = [records[i] for i in range(400)]
    print(export(killed_and_resumed, tmp_path / "out", dtype=dtype, rows=rows[:8], images_root=data))
    base, processor = mmdora.load("tiny-llava", dtype=dtype, device="cuda")
    before = evaluate(base, processor, rows, data).scores
    merged, processor = mmdora.load(tmp_path / "out", dtype=dtype, device="cuda")
    after = evaluate(merged, processor, rows, data).scores
    assert before and after
    print(f"base {before.overall} merged {after.overall}")
    assert after.overall.value > before.overall.value


def test_cuda_agrees_with_the_cpu(killed_and_resumed: Path, data: Path) -> None:
    from mmdora.families import family_of

    records = read_records(data / "test.jsonl")
    logits = []
    for device in ("cpu", "cuda"):
        model, processor = mmdora.load(killed_and_resumed, device=device)
        batch = family_of(processor).batch([records[i] for i in range(8)])
        with torch.inference_mode():
            logits.append(model(**{key: value.to(device) for key, value in batch.items()}).logits.cpu())
    assert (logits[0] - logits[1]).abs().max() / logits[0].abs().max() < 1e-3
