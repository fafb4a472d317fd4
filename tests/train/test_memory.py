"""The memory that `mmdora inspect` says a step takes is what one takes: `benchmarks/memory.py` on a smaller model."""

import json
import os
import subprocess
import sys
from pathlib import Path

import mmdora
from mmdora.adapt.inject import make_plan
from mmdora.config import RunConfig, validate
from mmdora.families import family_of
from mmdora.models.base import skeleton
from mmdora.models.load import load_processor
from mmdora.train.ledger import Ledger
from mmdora.train.memory import estimate, typical_batch

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


def test_an_estimate_takes_as_many_operations_for_long_rows_as_for_short_ones(tiny_llava, monkeypatch):
    """A CPU computes in blocks that stay in its cache. One by one they would be millions for a step of a 7B's."""
    counts, dispatch = [], Ledger.__torch_dispatch__

    def counting(self, *given):
        counts[-1] += 1
        return dispatch(self, *given)

    monkeypatch.setattr(Ledger, "__torch_dispatch__", counting)
    adapt = {"language": {"method": "dora", "rank": 8, "dropout": 0.05}, "vision": {"method": "lora", "rank": 8}}
    family, model = family_of(load_processor(tiny_llava)), skeleton(tiny_llava)
    for rows, tokens in ((4, 256), (32, 4096)):
        tree = {
            "model": {"base": tiny_llava},
            "adapt": adapt,
            "data": {"max_length": tokens},
            "training": {"batch_size": rows},
        }
        config = validate(RunConfig, tree, where=str)
        counts.append(0)
        estimate(model, make_plan(model, config.adapt), config, typical_batch(family, config))
    few, many = counts
    assert many < 1.2 * few
