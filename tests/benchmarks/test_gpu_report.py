"""`make gpu-report` on a CPU: what becomes of a stage that fails, hangs or works, and one stage in its small form.

All stages in their small forms, which take minutes: `make gpu-report ARGS=--small`.
"""

from __future__ import annotations

import json
import sys
import time
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

import mmdora

BENCHMARKS = Path(mmdora.__file__).parents[1] / "benchmarks"
STAND_INS = {
    "fails": "Sheet(f, True).row('half', got='this far'); raise SystemExit('no luck')",
    "hangs": "import subprocess, time; subprocess.Popen(['sh', '-c', 'sleep 600; :', str(f)]); time.sleep(600)",
    "works": "Sheet(f, True).row('found', answer='4|2')",
}


@pytest.fixture
def gpu_report(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return import_module("gpu_report.__main__")


def stand_in(stage: Any, file: Path) -> list[str]:
    before = f"from pathlib import Path\nfrom gpu_report.sheet import Sheet\nf = Path({str(file)!r})\n"
    return [sys.executable, "-c", before + STAND_INS[stage.name]]


def test_each_stage_is_recorded_and_the_rest_goes_on(gpu_report, tmp_path):
    stages = [gpu_report.Stage(name, f"It {name}", 2 if name == "hangs" else 60) for name in STAND_INS]
    begun = time.monotonic()
    assert not gpu_report.report(stages, tmp_path, stand_in, "python -m gpu_report")
    assert time.monotonic() - begun < 60
    found = {name: json.loads((tmp_path / f"{i}_{name}.json").read_text()) for i, name in enumerate(STAND_INS)}
    assert found["fails"]["status"] == "failed (exit code 1): no luck"
    assert found["fails"]["tables"] == {"half": [{"got": "this far"}]}
    assert found["hangs"]["status"] == "out of time after 2 s"
    assert found["works"]["status"] == "done"
    page = (tmp_path / "gpu.md").read_text()
    for line in ("| It fails | failed (exit code 1): no luck |", "| this far |", "| 4\\|2 |", "| It works | done |"):
        assert line in page
    assert "small" not in page.lower()
    sleeping = [path for path in Path("/proc").glob("[0-9]*/cmdline") if _says(path, f"{tmp_path}")]
    assert not sleeping


def _says(path: Path, word: str) -> bool:
    try:
        return word.encode() in path.read_bytes()
    except OSError:  # The process has ended.
        return False


def test_no_stage_begins_after_the_time_of_all(gpu_report, tmp_path):
    stages = [gpu_report.Stage("hangs", "first", 60), gpu_report.Stage("works", "second", 60)]
    assert not gpu_report.report(stages, tmp_path, stand_in, "title", seconds=2)
    assert json.loads((tmp_path / "1_works.json").read_text())["status"] == "not begun: no time left"
    assert sum(stage.limit for stage in gpu_report.STAGES) <= 60 * gpu_report.MINUTES


def test_every_stage_has_its_module(gpu_report):
    for stage in gpu_report.STAGES:
        text = (BENCHMARKS / "gpu_report" / f"{stage.name}.py").read_text()
        assert "def measure(sheet: Sheet) -> None:" in text


def test_a_stage_in_its_small_form(gpu_report, tmp_path, monkeypatch):
    """A part of the recipe's, in this process: torch is imported already."""
    recipe: Any = import_module("gpu_report.recipe")
    monkeypatch.setattr(recipe, "MAIN", recipe.AT_384)
    sheet = recipe.Sheet(tmp_path / "recipe.json", small=True)
    recipe.beside_peft(sheet, recipe.SMALL, recipe.MAIN, rounds=1, most=1, goals=True)
    beside, goals = json.loads((tmp_path / "recipe.json").read_text())["tables"].values()
    assert [row["variant"] for row in beside] == ["PEFT LoRA", "PEFT DoRA", "mmdora DoRA"]
    assert [row["goal"] for row in goals] == ["at most 1.00", "at least 2.0"]
