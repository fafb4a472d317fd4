"""Measures on one GPU, in at most 12 minutes, what could not be measured on a CPU, and writes `gpu.md`.

    make gpu-report                     # or, without make: PYTHONPATH=.:benchmarks python -m gpu_report
    make gpu-report ARGS=--small        # every stage in a small form on a CPU, with ten times the time: no numbers
    make gpu-report ARGS="--stages toolchain,recipe"

Each stage is a process of its own with a time limit, and writes its file before the next one begins. A stage that
fails or runs out of time is recorded with the last line that it printed, what it had found is kept, and the next one
begins. The exit code is 1 if any stage was not done.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from gpu_report.page import page
from gpu_report.sheet import write_json

ROOT = Path(__file__).parents[2]
MINUTES = 12
"""The most that the whole may take: what the issue of a GPU for an hour can spare for measuring."""


@dataclass(frozen=True)
class Stage:
    """A stage: the module with its `measure`, its heading in the page, and the most seconds it may take."""

    name: str
    title: str
    limit: int


STAGES = (
    Stage("toolchain", "Toolchain, and products of bf16 with results in fp32", 40),
    Stage("kernels", "The tests of the kernels", 110),
    Stage("recipe", "The step of the recipe at 7B", 240),
    Stage("killed", "Train, kill -9, resume, merge, in bf16", 80),
    Stage("memory_runs_out", "Out of memory", 40),
    Stage("tokens", "Tokens per second at 7B", 80),
    Stage("in_4_bits", "A step on a base in 4 bits", 60),
    Stage("compiled", "torch.compile", 60),
)
"""In the order of what matters if the machine is taken away early. The limits leave some seconds of `MINUTES`."""

Command = Callable[[Stage, Path], Sequence[str]]


def command(small: bool) -> Command:
    """How a stage is started: function (stage, its file) -> words."""
    more = ["--small"] if small else []
    return lambda stage, file: [sys.executable, "-m", "gpu_report.stage", stage.name, str(file), *more]


def report(
    stages: Sequence[Stage], folder: Path, started_by: Command, title: str, seconds: float = 60 * MINUTES
) -> bool:
    """Run the stages, write `FOLDER/N_NAME.json` and `.log` for each, and `FOLDER/gpu.md` after each.

    Args:
        started_by: gives the command of a stage, which writes tables and notes to the file that it is given.
        title: how this was started, for the page.
        seconds: the most that all stages together may take.

    Returns:
        Whether all stages were done.
    """
    folder.mkdir(parents=True, exist_ok=True)
    end, results = time.monotonic() + seconds, []
    for number, stage in enumerate(stages):
        file = folder / f"{number}_{stage.name}.json"
        file.unlink(missing_ok=True)
        begun = time.monotonic()
        status = _run(started_by(stage, file), file.with_suffix(".log"), min(stage.limit, end - begun))
        found = json.loads(file.read_text()) if file.exists() else {"tables": {}, "notes": []}
        result = {"stage": stage.name, "title": stage.title, "status": status} | found
        results.append(result | {"seconds": round(time.monotonic() - begun, 1)})
        write_json(file, results[-1])
        (folder / "gpu.md").write_text(page(title, results), encoding="utf-8")
        print(f"{stage.name}: {status}, {results[-1]['seconds']} s", flush=True)
    return all(result["status"] == "done" for result in results)


def _run(words: Sequence[str], log: Path, limit: float) -> str:
    """Run a command in a process group of its own; gives "done", or why not."""
    if limit < 1:
        return "not begun: no time left"
    path = os.pathsep.join([str(ROOT), str(ROOT / "benchmarks"), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
    with log.open("w", encoding="utf-8") as told:
        process = subprocess.Popen(words, cwd=ROOT, stdout=told, stderr=subprocess.STDOUT, start_new_session=True,
                                   env={**os.environ, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1"})  # fmt: skip
        try:
            code = process.wait(limit)
        except subprocess.TimeoutExpired:
            return f"out of time after {limit:.0f} s"
        finally:  # Whatever the stage started ends with it, also when this process is interrupted.
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return "done" if code == 0 else f"failed (exit code {code}): {lines[-1] if lines else 'no output'}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="small forms, for a CPU")
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "gpu-report", help="default: runs/gpu-report")
    parser.add_argument("--stages", default=",".join(stage.name for stage in STAGES), help="default: all")
    options = parser.parse_args()
    wanted = options.stages.split(",")
    if unknown := set(wanted) - {stage.name for stage in STAGES}:
        parser.error(f"no stage {', '.join(sorted(unknown))}; there are {', '.join(stage.name for stage in STAGES)}")
    chosen = [stage for stage in STAGES if stage.name in wanted]
    if options.small:  # A CPU may be shared, and nothing is measured there.
        chosen = [replace(stage, limit=10 * stage.limit) for stage in chosen]
    words = " ".join(["python -m gpu_report", *sys.argv[1:]])
    most = 60 * MINUTES * (10 if options.small else 1)
    done = report(chosen, options.out, command(options.small), words, most)
    print(options.out / "gpu.md")
    sys.exit(not done)


if __name__ == "__main__":
    main()
