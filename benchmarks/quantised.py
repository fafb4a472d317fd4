"""Measures training on a base in 4 bits: the step beside PEFT's QLoRA and QDoRA, and what may be merged into what.

    python benchmarks/quantised.py            # tables, results/quantised{,_cuda}.{json,md}
    python benchmarks/quantised.py --quick    # few rounds, nothing written

The step is measured as in `step.py`: all variants share one base, whose language linears are bitsandbytes's in nf4, and
take turns; a ratio is the median of (variant / PEFT's QLoRA in the same round), `again` is that peer measured twice.

The merges: DoRA of rank 16 is trained on `tiny-llava` in nf4 and fp4 on drawn scenes, and its answers to held-out
questions are scored as they are, merged into the dequantised weights in bf16, on the full-precision base, and after the
merged weights were quantised again.
"""

from __future__ import annotations

import argparse
import os
import re
import tempfile
import warnings
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from harness import show, write
from measures import describe, memory, timings
from step import rows_of
from variants import PEER, SMALL, WIDTH_7B, Case

import mmdora
from mmdora.data_prep import scenes

NAMES = (PEER, f"{PEER} again", "PEFT DoRA", "mmdora LoRA", "mmdora DoRA")


def steps(case: Case, rounds: int, *, measures_memory: bool) -> list[dict[str, Any]]:
    """A row for each variant, with and without dropout."""
    times = timings(case, (0, 0.05), NAMES, rounds)
    wanted = [name for name in times if "again" not in name] if measures_memory else []
    memories = {name: memory(case, float(name.rpartition(" ")[2]), name.rpartition(",")[0]) for name in wanted}
    return [{key: value for key, value in row.items() if key != "/ floor"} for row in rows_of(times, memories)]


def merges(form: str, steps: int, rows: int, root: Path) -> list[dict[str, Any]]:
    """The scores of one run in four forms, and how far their logits are from those of the model that was trained."""
    data, run, told = root / "data", root / f"run-{form}", list[str]()
    if not data.exists():
        scenes.prepare(data, kind="count", rows=600, held_out=rows, workers=1)
    config = {
        "model": {"base": "tiny-llava", "quantize": {"type": form, "double": True}},
        "adapt": {"language": {"method": "dora", "rank": 16}},
        "data": {"train": str(data / "train.jsonl")},
        "training": {"output": str(run), "steps": steps, "batch_size": 16, "lr": 1e-3, "save_every": steps},
    }
    mmdora.train(config, say=lambda line: None)
    for name, requantize in (("merged", False), ("again", True)):
        mmdora.export(run, root / f"{form}-{name}", dtype="bf16", requantize=requantize, say=told.append)
    said = "\n".join(told)
    apart = {
        "merged into the dequantised weights, bf16": re.findall(r"the written one ([\d.e+-]+)", said)[0],
        "on the full-precision base": re.findall(r"which is not written, ([\d.e+-]+)", said)[0],
        "merged, then quantised again": re.findall(r"quantised again: ([\d.e+-]+)", said)[0],
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # The line about the full-precision base is what is measured here.
        models = {
            f"as trained, on {form}": mmdora.load(run),
            "merged into the dequantised weights, bf16": mmdora.load(root / f"{form}-merged"),
            "on the full-precision base": mmdora.load(run, quantize="none"),
            "merged, then quantised again": mmdora.load(root / f"{form}-again"),
            "the base alone, for comparison": mmdora.load("tiny-llava"),
        }
    compared = mmdora.compare(models, data)
    return [
        {"model": name, "correct": f"{own.overall.value:.3f}", "logits off by": apart.get(name, "")}
        for name, own in compared.scores.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few rounds and steps, nothing written")
    parser.add_argument("--rounds", type=int, default=20, help="rounds per case (default: 20)")
    options = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    case = Case(**{**vars(WIDTH_7B if device == "cuda" else SMALL), "quantised": True})
    name, command = (
        f"quantised{'_cuda' * (device == 'cuda')}",
        f"python benchmarks/quantised.py --rounds {options.rounds}",
    )
    tables: dict[str, list[dict[str, Any]]] = {}

    def found(title: str, rows: list[dict[str, Any]]) -> None:
        """Show a table, and write it with those before it, so that a run which is cut leaves what it has measured."""
        tables[title] = rows
        show(title, rows)
        if not options.quick:
            print(write(name, command, tables))

    found(describe(case), steps(case, 5 if options.quick else options.rounds, measures_memory=not options.quick))
    with tempfile.TemporaryDirectory() as folder:
        for form in ("nf4", "fp4"):
            title = f"DoRA trained on tiny-llava in {form}, held-out questions about drawn scenes"
            found(title, merges(form, *((20, 40) if options.quick else (200, 400)), Path(folder)))


if __name__ == "__main__":
    main()
