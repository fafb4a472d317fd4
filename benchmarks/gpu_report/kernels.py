"""The tests of the kernels on this device: those of small shapes first, then all. On a CPU: two in the interpreter."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from gpu_report.sheet import Sheet

ROOT = Path(__file__).parents[2]
OUTCOME = re.compile(r"::(\S.*?) (PASSED|FAILED|ERROR|SKIPPED)")
ROUNDS = {
    "small shapes": ["tests/gpu/test_kernels.py", "-k", "40 or 129 or near_zero or gradcheck"],
    "all": ["tests/gpu/test_kernels.py"],
}
INTERPRETED = {"interpreter": ["tests/ops/interpreted.py", "-k", "trial_launch or no_rows"]}


def measure(sheet: Sheet) -> None:
    for name, words in (INTERPRETED if sheet.small else ROUNDS).items():
        counts, bad = _run(words, sheet)
        cells = {word.lower(): counts[word] for word in ("PASSED", "FAILED", "ERROR", "SKIPPED")}
        sheet.row("kernels", tests=name, **cells)
        for test in bad:
            sheet.note(f"{name}: {test}")


def _run(words: list[str], sheet: Sheet) -> tuple[Counter[str], list[str]]:
    """Outcome -> number of tests, and the tests that did not pass. Lines are read as they come."""
    command = [sys.executable, "-m", "pytest", "-v", "--color=no", "--noconftest", "-p", "no:cacheprovider", *words]
    environment = {**os.environ, **({"TRITON_INTERPRET": "1"} if sheet.small else {})}
    counts, bad = Counter[str](), list[str]()
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    with subprocess.Popen(command, cwd=ROOT, env=environment, **pipes) as process:
        assert process.stdout is not None
        for line in process.stdout:
            print(line, end="")  # into the log of the stage
            if found := OUTCOME.search(line):
                counts[found[2]] += 1
                if found[2] in ("FAILED", "ERROR"):
                    bad.append(f"{found[2].lower()}: {found[1]}")
    if not counts:
        raise SystemExit(f"pytest ran no test: exit code {process.returncode}")
    return counts, bad
