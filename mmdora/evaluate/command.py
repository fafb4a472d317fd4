"""`mmdora eval`: evaluates models on a task or a suite, writes their files, and prints one table."""

from __future__ import annotations

import gc
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape

from mmdora.errors import MmdoraError
from mmdora.evaluate.gallery import write_gallery
from mmdora.evaluate.output import GALLERY
from mmdora.evaluate.processes import main_makes, processes
from mmdora.evaluate.run import Evaluation, evaluate
from mmdora.evaluate.scoring.significance import Comparison, compare
from mmdora.evaluate.source import TaskRecords, find, first
from mmdora.evaluate.suites import ENTERED, LOCAL, SERVER, Cell, Suite, average, entered_scores, suite_of, suite_table
from mmdora.evaluate.table import ScoreRow, scores_table
from mmdora.models.load import load
from mmdora.outputs.written import Written

COMPARISON = "comparison.json"


@dataclass(frozen=True)
class EvaluationSettings:
    """The settings that all models share; see `mmdora eval --help`."""

    out: Path
    limit: int | None = None
    batch_size: int = 64
    dtype: str | None = None
    trust_remote_code: bool = False

    def folder(self, source: TaskRecords) -> Path:
        """The folder of a task's results. Other splits and rehearsals have other folders, so they replace nothing."""
        return self.out / (source.name if self.limit is None else f"{source.name}-first-{self.limit}")


def run_task(models: Mapping[str, str], source: TaskRecords, settings: EvaluationSettings) -> dict[str, Evaluation]:
    """Evaluate models on one task and print the table; results go to `EvaluationSettings.folder`/MODEL.

    Args:
        models: name -> path, hub id or bundled name, which `mmdora.load` can open.
    """
    evaluations = {}
    if len(models) > 1:
        main_makes(lambda: Written(settings.folder(source)).check(COMPARISON, GALLERY))
    for name, model, processor in _opened(models, settings):
        evaluations[name] = _evaluate(model, processor, name, source, settings)
    if processes().is_main_process:
        _show(evaluations, source, settings)
    return evaluations


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
    """
    suite = suite_of(name)
    entered = entered_scores(suite, list(models), given)
    main_makes(lambda: Written(settings.out).check(f"{suite.name}.json"))
    sources = _sources(suite, data, {task for row in entered.values() for task in row})
    evaluations: dict[str, dict[str, Evaluation]] = {column.task: {} for column in suite.columns}
    for model_name, model, processor in _opened(models, settings) if sources else ():
        for task, source in sources.items():
            evaluations[task][model_name] = _evaluate(model, processor, model_name, source, settings, suite)
    cells: dict[str, dict[str, Cell]] = {model: {} for model in models}
    for column in suite.columns:
        for model, evaluation in evaluations[column.task].items():
            scores, split = evaluation.scores, sources[column.task].split
            value = None if scores is None else 100 * column.number(scores).value
            cells[model][column.task] = Cell(value, SERVER if scores is None else LOCAL, split)
    for model, row in entered.items():
        for task, value in row.items():
            cells[model][task] = Cell(value, ENTERED, sources[task].split if task in sources else None)
    if processes().is_main_process:
        for task, source in sources.items():
            _show(evaluations[task], source, settings)
        _report(suite, cells, settings)
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


def _opened(models: Mapping[str, str], settings: EvaluationSettings) -> Iterator[tuple[str, Any, Any]]:
    """Open one model after the other; each is freed before the next is loaded."""
    device = str(processes().device)
    for name, path in models.items():
        model, processor = load(
            path,
            dtype=settings.dtype,
            device=device if device.startswith("cuda") else None,
            trust_remote_code=settings.trust_remote_code,
        )
        yield name, model, processor
        del model
        gc.collect()


def _evaluate(
    model: Any, processor: Any, name: str, source: TaskRecords, settings: EvaluationSettings, suite: Suite | None = None
) -> Evaluation:
    evaluation = evaluate(
        model,
        processor,
        first(source.records, settings.limit),
        task=source.task,
        batch_size=settings.batch_size,
        beams=suite.beams if suite else 1,
        max_new_tokens=suite.max_new_tokens if suite else None,
        out=settings.folder(source) / name,
        progress=True,
    )
    if evaluation.reused and processes().is_main_process:
        Console(stderr=True).print(
            f"{name}: {evaluation.reused:,} answers of an earlier run were taken up", highlight=False, markup=False
        )
    return evaluation


def _show(evaluations: Mapping[str, Evaluation], source: TaskRecords, settings: EvaluationSettings) -> None:
    """Print the table of a task; for several models it has their comparison, which is written to OUT/TASK too."""
    folder, console = settings.folder(source), Console()
    scored = {name: own.scores for name, own in evaluations.items() if own.scores is not None}
    if not scored:
        results = source.task.results
        console.print(
            f"{source.task.name} ({source.split}): scored by its server; hand in {folder}/MODEL/{results.name}"
            if results
            else f"{source.task.name} ({source.split}): the records hold no answers; see {folder}/MODEL",
            highlight=False,
        )
        return
    rows = [ScoreRow(name, scores.to_dict()) for name, scores in scored.items()]
    versus = {name: _versus(evaluations, name) for name in list(scored)[1:]}
    asked = (
        "" if settings.limit is None else f", a rehearsal on the first {len(next(iter(evaluations.values())).rows):,}"
    )
    title = f"{escape(source.task.name)} ({escape(source.split)}{asked}): {rows[0].scores['metric']}"
    console.print(scores_table(rows, title, versus))
    for name, scores in scored.items():
        numbers = ", ".join(f"{number} {score.value:.1%}" for number, score in scores.details.items())
        if numbers:
            console.print(f"{name}: {numbers}", highlight=False, markup=False)
    if versus:
        written = Written(folder)
        written.write_json(
            COMPARISON,
            {
                "first": rows[0].name,
                "scores": {row.name: dict(row.scores) for row in rows},
                "minus first": {name: vars(comparison) for name, comparison in versus.items()},
            },
        )
        answers, records = {name: evaluation.rows for name, evaluation in evaluations.items()}, source.records
        written.write(GALLERY, lambda path: write_gallery(path, source.task, answers, first(records, settings.limit)))
    console.print(f"files: {folder}", highlight=False, markup=False)


def _versus(evaluations: Mapping[str, Evaluation], name: str) -> Comparison:
    base = next(iter(evaluations.values()))
    return compare(base.task.scorer, base.rows, evaluations[name].rows)


def _report(suite: Suite, cells: Mapping[str, Mapping[str, Cell]], settings: EvaluationSettings) -> None:
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
    note = {"limit": settings.limit} if settings.limit is not None else {}
    Written(settings.out).write_json(f"{suite.name}.json", {"suite": suite.name, "models": table} | note)
