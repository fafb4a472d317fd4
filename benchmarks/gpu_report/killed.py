"""`mmdora train` in bf16 is killed by SIGKILL, resumed, merged in bf16, and held against a run that nobody stopped."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import load_file

import mmdora
from gpu_report.sheet import Sheet
from mmdora.data_prep import scenes

TABLE = "a run that was killed"


def measure(sheet: Sheet) -> None:
    steps, every, batch = (4, 2, 2) if sheet.small else (60, 20, 16)
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        scenes.prepare(root / "data", kind="count", rows=20 if sheet.small else 600, held_out=8, workers=1)

        def config(run: str) -> dict[str, Any]:
            return {
                "model": {"base": "tiny-llava", "dtype": "bf16"},
                "adapt": {"vision": {"method": "dora", "rank": 4}, "projector": {"method": "full"},
                          "language": {"method": "dora", "rank": 16}},
                "data": {"train": str(root / "data" / "train.jsonl")},
                "training": {"output": str(root / run), "steps": steps, "save_every": every, "batch_size": batch,
                             "precision": "bf16", "lr": 5e-4, "log_every": 1, "report_to": []},
            }  # fmt: skip

        stopped_at = _killed(config("killed"), root / "killed.yaml", root / "killed" / f"checkpoint-{every}")
        sheet.row(TABLE, what="killed with this many steps logged", found=stopped_at)
        run = mmdora.train(config("killed"), resume=True, say=print)
        sheet.row(TABLE, what="steps in the log after the resume", found=f"{len(_losses(run))} of {steps}")
        whole = mmdora.train(config("whole"), say=print)
        killed, expected = _losses(run), _losses(whole)
        apart = max(abs(killed[step] / expected[step] - 1) for step in expected)
        sheet.row(TABLE, what="loss of the first step and the last", found=f"{expected[1]:.3f}, {expected[steps]:.3f}")
        sheet.row(TABLE, what="losses apart from those of a run not stopped, at most", found=f"{apart:.1e}")
        done = json.loads((run / "complete.json").read_text())
        sheet.row(TABLE, what="device", found=done["device"])
        told: list[str] = []
        mmdora.export(run, root / "merged", dtype="bf16", say=told.append)
        for line in "\n".join(told).splitlines():
            sheet.note(f"export: {line.strip()}".replace(str(root), "…"))
        files = (root / "merged").glob("*.safetensors")
        dtypes = {str(tensor.dtype) for file in files for tensor in load_file(file).values()}
        sheet.row(TABLE, what="dtypes of the merged checkpoint", found=", ".join(sorted(dtypes)))
        if torch.cuda.is_available() and not done["device"].startswith("cuda"):
            raise SystemExit(f"the run was on {done['device']}")


def _killed(config: dict[str, Any], path: Path, checkpoint: Path) -> int:
    """Train in a process of its own, kill it once a checkpoint is complete; gives the number of logged steps."""
    path.write_text(yaml.safe_dump(config))
    process = subprocess.Popen([sys.executable, "-m", "mmdora", "train", str(path)])
    while not (checkpoint / "trainer_state.json").exists():
        if process.poll() is not None:
            raise SystemExit(f"training ended before its first checkpoint, with exit code {process.returncode}")
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    return len(_losses(checkpoint.parent))


def _losses(run: Path) -> dict[int, float]:
    entries = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return {entry["step"]: entry["loss"] for entry in entries if "loss" in entry}
