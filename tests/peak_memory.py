"""Measures the largest memory of a piece of work in a fresh process, without that of mapped files. Linux only.

A process that imports this file can also call `anonymous` for its own memory at this moment.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

NEEDS_PROC = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc")

SCRIPT = """
import sys, threading, time
from peak_memory import anonymous
{warm_up}
before, peak, done = anonymous(), 0, False
def watch():
    global peak
    while not done:
        peak = max(peak, anonymous())
        time.sleep(0.005)
thread = threading.Thread(target=watch)
thread.start()
{work}
done = True
thread.join()
print({size}, peak - before)
"""


def anonymous() -> int:
    """Bytes of anonymous memory of this process."""
    status = Path("/proc/self/status").read_text()
    return int(re.findall(r"RssAnon:\s+(\d+)", status)[0]) * 1024


def peak_of(warm_up: str, work: str, size: str, *arguments: Path | str) -> tuple[int, int]:
    """Run `work` in a fresh process; gives the integer `size`, and the bytes by which memory grew at most.

    Args:
        warm_up: code that runs before, so that what is imported on first use is not counted.
        work: code that is measured.
        size: an expression of what `work` has left, such as how much was done.
        arguments: `sys.argv[1:]` of the code.
    """
    script = SCRIPT.format(warm_up=warm_up, work=work, size=size)
    command = [sys.executable, "-c", script, *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    done, peak = map(int, run.stdout.split()[-2:])
    return done, peak
