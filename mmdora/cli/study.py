"""`mmdora study`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from mmdora.cli.app import Flag, app
from mmdora.errors import MmdoraError


@app.command(sort_key=6.6)
def study(
    *designs: Path,
    out: Path = Path("runs/study"),
    results: Path | None = None,
    report: Path | None = None,
    only_report: Annotated[bool, Flag] = False,
) -> None:
    """Compare methods over tasks, learning rates and seeds: a grid of ordinary runs, and a report.

    Reads the results that there are and runs the cells that are missing. Ctrl-C is safe, and the same command goes
    on; several processes and machines may share the folder. Every arm gets the same rates; the best is chosen on
    a validation split and reported on the test split.

    Examples: `mmdora study configs/study/methods.yaml`;
    `mmdora study configs/study/*.yaml --results docs/evidence/results.jsonl --report docs/evidence.md --only-report`

    Parameters
    ----------
    designs
        YAML files, each the design of a study.
    out
        Folder for data, runs and results.jsonl; studies share it, and a cell that two of them have runs once.
    results
        A file of results that need not be made again; new ones are added to it.
    report
        Write tables, plots and findings of the studies to this Markdown file.
    only_report
        Run nothing; write the report from the results that there are.
    """
    if not designs:
        raise MmdoraError("study: name at least one design, such as configs/study/methods.yaml")
    if only_report and report is None:
        raise MmdoraError("study: --only-report needs --report FILE")
    from mmdora.study.design import read_study

    studies = {path: read_study(path) for path in designs}
    from mmdora.study.command import run_studies

    run_studies(studies, out, results, report, only_report=only_report)
