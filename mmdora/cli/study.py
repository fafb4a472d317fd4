"""`mmdora study`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from mmdora.cli.app import Count, Flag, app
from mmdora.cli.named import check_model, check_results_folder
from mmdora.errors import MmdoraError
from mmdora.outputs.folder import check_finished


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Own:
    """A study of your own records.

    Parameters
    ----------
    data
        Your records: a folder of `mmdora prep` with train and a held-out split. The small study for them ends with a
        sentence that says which method, rank and place to take, and how sure that is.
    methods
        Two or more of lora, dora, rslora, magnitude and full; the first is kept unless another is seen to be better.
    budget
        Time for it: 2h, 90m or 1h30m.
    base
        The model to adapt.
    task
        How to ask and score; default: what the data's card names, else exact match.
    """

    data: Path | None = None
    methods: str = "lora,dora"
    budget: str = "2h"
    base: str = "tiny-llava"
    task: str | None = None


@app.command(sort_key=6.6)
def study(
    *designs: Path,
    own: Own = Own(),
    out: Path = Path("runs/study"),
    results: Path | None = None,
    report: Path | None = None,
    only_report: Annotated[bool, Flag] = False,
    again: Count | None = None,
) -> None:
    """Compare methods over tasks, learning rates and seeds: a grid of ordinary runs, and a report.

    Reads the results that there are and runs the cells that are missing. Ctrl-C is safe, and the same command goes
    on; several processes and machines may share the folder. Every arm gets the same rates; the best is chosen on
    a validation split and reported on the test split.

    Examples: `mmdora study configs/study/methods.yaml`;
    `mmdora study --data data/mine --methods lora,dora --budget 2h`

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
    again
        Run so many cells of --results anew, and end with an error if one scores differently.
    """
    check_results_folder(out)
    if own.data is not None:
        if designs or report or results or only_report or again:
            raise MmdoraError("study: --data goes with --methods, --budget, --base, --task and --out only")
        return _own(own, out)
    if not designs:
        raise MmdoraError("study: name at least one design, such as configs/study/methods.yaml, or records with --data")
    if only_report and (report is None or again):
        raise MmdoraError("study: --only-report needs --report FILE, and runs nothing again")
    if again and results is None:
        raise MmdoraError("study: --again needs --results FILE, whose cells it runs anew")
    from mmdora.study.design import read_study

    studies = {path: read_study(path) for path in designs}
    from mmdora.study.command import repeat_cells, run_studies

    if again and results:
        repeat_cells(studies, out, results, again)
    else:
        run_studies(studies, out, results, report, only_report=only_report)


def _own(own: Own, out: Path) -> None:
    assert own.data is not None
    from mmdora.study.own import OwnStudy, methods_of, seconds_of, study_own

    methods, seconds = methods_of(own.methods), seconds_of(own.budget)
    check_model(own.base)
    if not check_finished(own.data).is_dir():
        raise MmdoraError(f"{own.data}: no such folder of records (mmdora prep makes one)")
    print(study_own(OwnStudy(own.data, methods, seconds, own.base, out, own.task)))
