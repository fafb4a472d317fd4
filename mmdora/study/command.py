"""What `mmdora study` calls: studies one after the other, their results in one file, one report."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from mmdora.errors import MmdoraError
from mmdora.study.design import Study
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
        MmdoraError: a design names a task that there is none of; or in the cases of `Runner.run`.
    """
    for path, study in studies.items():
        missing = [task for task in study.tasks if task not in TASKS]
        if missing:
            raise MmdoraError(f"{path}: tasks: no task {missing[0]!r}; there are {', '.join(TASKS)}")
    runner = Runner(out, [known] if known else [])
    results = read_results([*runner.known, out / RESULTS]) if only_report else None
    for study in () if only_report else studies.values():
        results = runner.run(study)
        if known is not None:
            results.write(known)
    if report is not None and results is not None:
        write_report(studies, TASKS, results, report, f"`{known or out / RESULTS}`")
        runner.say(f"wrote {report}")
