"""The memory that `mmdora inspect` says a step takes is what one takes: `benchmarks/memory.py` on a smaller model."""

import json
import os
import subprocess
import sys
from pathlib import Path

import mmdora

BENCHMARKS = Path(mmdora.__file__).parents[1] / "benchmarks"
SCRIPT = """
import json
from dataclasses import replace
from memory import Case, Measured, measure

case = Case(hidden=512, intermediate=1408, layers=6, batch=4, length=128, vocabulary=8000)
dora = Measured("dora", False, rank=256, dropout=0.05)
for asked in (Measured("lora", True, dropout=0.1), dora, Measured("full", False)):
    print(json.dumps(measure(replace(asked, case=case))))
"""
RUNTIME = 40e6  # code and caches that come with the first step, which in a model of 500 MB are less than the bound


def test_the_estimate_is_what_a_step_takes():
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(BENCHMARKS), str(BENCHMARKS.parent)])}
    environment |= {"MALLOC_MMAP_THRESHOLD_": str(2**16), "MALLOC_TRIM_THRESHOLD_": str(2**17)}
    run = subprocess.run([sys.executable, "-c", SCRIPT], env=environment, capture_output=True, text=True, check=True)
    small, dora, full = (json.loads(line) for line in run.stdout.splitlines())
    for found in (small, dora, full):
        assert 0.9 * found["estimate"] <= found["measured"] <= found["estimate"] + RUNTIME, found
    for found in (dora, full):  # what the first step brought is there by now
        assert abs(found["estimate"] / found["measured"] - 1) < 0.1, found
