"""`mmdora eval --suite`: evaluates models on the columns of a paper's table, and prints that table."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from rich.console import Console

from mmdora.errors import MmdoraError
from mmdora.evaluate.models import EvaluationSettings, compared_on, evaluated, opened
from mmdora.evaluate.processes import main_makes, processes
from mmdora.evaluate.run import Evaluation
from mmdora.evaluate.source import TaskRecords, find
from mmdora.evaluate.suites import ENTERED, LOCAL, SERVER, Cell, Suite, average, entered_scores, suite_of, suite_table
from mmdora.outputs.written import Written


def run_suite(
    models: Mapping[str, str], name: str, data: Path, settings: EvaluationSettings, given: Iterable[str] = ()
) -> dict[str, dict[str, Cell]]:
    """Evaluate models on the columns of a suite; print the table of each task and that of the suite.

    Args:
        models: name -> path, hub id or bundled name, which `mmdora.load` can open.
        name: name of the suite.
        data: folder with a folder for each column, written by `mmdora prep` and named like its task.
        given: scores from official servers; see `entered_scores`.

    Returns:
        Model -> task -> cell; this is also written to OUT/SUITE.json.

    Raises:
        MmdoraError: no such suite or data; a score for no column; or no folder to write to.
    """
    suite, out = suite_of(name), settings.out
    if out is None:
        raise MmdoraError("a suite writes its table; name a folder (out)")
    entered = entered_scores(suite, list(models), given)
    main_makes(lambda: Written(out).check(f"{suite.name}.json"))
    sources = _sources(suite, data, {task for row in entered.values() for task in row})
    evaluations: dict[str, dict[str, Evaluation]] = {column.task: {} for column in suite.columns}
    for model_name, model, processor in opened(models, settings) if sources else ():
        for task, source in sources.items():
            evaluations[task][model_name] = evaluated(model, processor, model_name, source, settings, suite)
    cells: dict[str, dict[str, Cell]] = {model: {} for model in models}
    for column in suite.columns:
        for model, evaluation in evaluations[column.task].items():
            scores, split = evaluation.scores, sources[column.task].split
            value = None if scores is None else 100 * column.number(scores).value
            cells[model][column.task] = Cell(value, SERVER if scores is None else LOCAL, split)
    for model, row in entered.items():
        for task, value in row.items():
            cells[model][task] = Cell(value, ENTERED, sources[task].split if task in sources else None)
    for task, source in sources.items():
        compared = compared_on(evaluations[task], source, settings)
        if processes().is_main_process:
            Console().print(compared, highlight=False)
    if processes().is_main_process:
        _report(suite, cells, out, settings.limit)
    return cells


def _sources(suite: Suite, data: Path, entered: set[str]) -> dict[str, TaskRecords]:
    """The data of each column. Columns without data are named in one line."""
    if not data.is_dir():
        raise MmdoraError(f"{data}: no folder; a suite reads DIR/TASK, as `mmdora prep … --out DIR/TASK` writes it")
    there = [column.task for column in suite.columns if (data / column.task).is_dir()]
    missing = [column.task for column in suite.columns if column.task not in (*there, *entered)]
    if not there and not entered:
        raise MmdoraError(f"{data}: no folder for any column of {suite.name} ({', '.join(missing)})")
    if missing and processes().is_main_process:
        Console(stderr=True).print(
            f"{suite.name}: no data for {', '.join(missing)} below {data}; the average stays blank", highlight=False
        )
    return {task: find(data / task, task) for task in there}


def _report(suite: Suite, cells: Mapping[str, Mapping[str, Cell]], out: Path, limit: int | None) -> None:
    console = Console()
    console.print(suite_table(suite, cells))
    blank = {
        task for row in cells.values() for task, cell in row.items() if cell.value is None and cell.scored == SERVER
    }
    if blank:
        console.print(
            f"once their servers have scored {', '.join(sorted(blank))}: the same command with "
            f"--scores {sorted(blank)[0]}=NUMBER …",
            highlight=False,
        )
    table = {
        name: {
            "columns": {task: vars(cell) for task, cell in row.items()},
            "average": average([row.get(column.task) for column in suite.columns]),
        }
        for name, row in cells.items()
    }
    note = {"limit": limit} if limit is not None else {}
    Written(out).write_json(f"{suite.name}.json", {"suite": suite.name, "models": table} | note)
