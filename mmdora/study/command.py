"""What `mmdora study` calls: studies one after the other, their results in one file, one report."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import torch

from mmdora.errors import MmdoraError
from mmdora.study.design import Study
from mmdora.study.repeat import cheapest, repeat
from mmdora.study.report import write_report
from mmdora.study.results import RESULTS, read_results
from mmdora.study.run import Runner
from mmdora.study.tasks import TASKS


def run_studies(
    studies: Mapping[Path, Study], out: Path, known: Path | None, report: Path | None, *, only_report: bool
) -> None:
    """Run the missing cells of studies, add them to the known results, and write the report.

    Args:
        studies: file -> design.
        known: file of results that need not be made again; new ones are added to it.
        report: the Markdown file to write; its plots lie beside it in a folder of its name.

    Raises:
        MmdoraError: in the cases of `Runner.run`.
    """
    if not only_report:
        _one_process_per_device()
    runner = Runner(out, [known] if known else [])
    results = read_results([*runner.known, out / RESULTS]) if only_report else None
    for study in () if only_report else studies.values():
        results = runner.run(study)
        if known is not None:
            results.write(known)
    if report is not None and results is not None:
        write_report(studies, TASKS, results, report, f"`{known or out / RESULTS}`")
        runner.say(f"wrote {report}")


def repeat_cells(studies: Mapping[Path, Study], out: Path, known: Path, count: int) -> None:
    """Run the cheapest cells of the known results anew.

    Raises:
        MmdoraError: one of them scores differently, by more than its interval; or there are too few.
    """
    results, runner = read_results([known]), Runner(out, [known])
    for cell in cheapest(studies.values(), runner, results, count):
        repeated = repeat(runner, cell, results)
        runner.say(str(repeated))
        if not repeated.same:
            raise MmdoraError(f"{cell}: does not score as in {known}")


def _one_process_per_device() -> None:
    """On a machine with several GPUs, run this command once on each of them and wait; what they finish is read after.

    Raises:
        MmdoraError: one of the processes ended with an error, which it has told.
    """
    count = torch.cuda.device_count()
    if count < 2:
        return
    names = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name] or map(str, range(count))
    command = [sys.executable, "-m", "mmdora", *sys.argv[1:]]
    started = [subprocess.Popen(command, env={**os.environ, "CUDA_VISIBLE_DEVICES": name}) for name in names]
    codes = [process.wait() for process in started]
    if any(codes):
        failed = MmdoraError("study: the process of a GPU ended with an error")
        failed.told = True
        raise failed
