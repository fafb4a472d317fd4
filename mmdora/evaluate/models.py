"""Evaluates models that are named or opened: `mmdora.evaluate`, `mmdora.compare`, and what `mmdora eval` calls."""

from __future__ import annotations

import gc
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from mmdora.errors import MmdoraError
from mmdora.evaluate.comparison import Compared, check_same_questions
from mmdora.evaluate.gallery import write_gallery
from mmdora.evaluate.output import GALLERY
from mmdora.evaluate.processes import main_makes, processes
from mmdora.evaluate.run import Evaluation
from mmdora.evaluate.run import evaluate as evaluate_records
from mmdora.evaluate.source import TaskRecords, find, first
from mmdora.evaluate.suites import Suite
from mmdora.evaluate.tasks import task_of
from mmdora.families import family_of
from mmdora.models.load import load, load_processor
from mmdora.models.locate import locate
from mmdora.outputs.written import Written
from mmdora.prepare.memory import MemoryRows
from mmdora.records.reader import Records
from mmdora.records.row import Row, videos_of

COMPARISON = "comparison.json"
ONLY = "model"
"""The name of a model that was given without one; its results lie in a folder of this name."""
Model = str | Path | tuple[Any, Any]
"""What `mmdora.load` can open, or a model and its processor."""


@dataclass(frozen=True)
class EvaluationSettings:
    """The settings that all models share; see `evaluate`."""

    out: Path | None = None
    limit: int | None = None
    batch_size: int = 64
    dtype: str | None = None
    trust_remote_code: bool = False
    quantize: Any = None
    boxes: Mapping[str, str] | None = None

    def folder(self, source: TaskRecords) -> Path | None:
        """The folder of a task's results. Other splits and rehearsals have other folders, so they replace nothing."""
        if self.out is None:
            return None
        return self.out / (source.name if self.limit is None else f"{source.name}-first-{self.limit}")


def evaluate(
    model: Model,
    data: Any,
    *,
    task: str | None = None,
    split: str | None = None,
    images: Path | str | None = None,
    limit: int | None = None,
    batch_size: int = 64,
    dtype: str | None = None,
    out: Path | str | None = None,
    trust_remote_code: bool = False,
    quantize: Any = None,
    boxes: Mapping[str, str] | None = None,
) -> Evaluation:
    """Score a model by the answers it generates, as the task's papers do.

    Args:
        model: what `mmdora.load` can open, or `(model, processor)`. An adapter on a model may be unmerged.
        data: folder that `mmdora prep` wrote, a file of records, `Records`; or rows in memory, as `mmdora.train` takes
            them.
        task: how to ask and score; default: what the data's card names, else exact match.
        split: of a folder; default: the one that papers report.
        images: root of the image paths; default: the card's, else the folder of the records, or the working folder.
        limit: score the first so many records only.
        batch_size: questions in a forward pass.
        dtype: "fp32", "bf16" or "fp16", of a model that is opened here; None for the dtype of its files.
        out: folder for answers, scores and pages, in TASK/model; None writes nothing. What a killed call has
            answered is taken up by the same call.
        trust_remote_code: whether to run code that a checkpoint brings along.
        quantize: of a model that is opened here; as for `mmdora.load`.
        boxes: what the numbers of boxes in the records are, and how models write them, as the config's `data.boxes`.

    Returns:
        The answers and scores.

    Raises:
        MmdoraError: there is no such model, data, task or split; or in the cases of `mmdora.evaluate.run.evaluate`.
    """
    settings = EvaluationSettings(_path(out), limit, batch_size, dtype, trust_remote_code, quantize, boxes)
    return evaluate_on({ONLY: model}, source_of(data, task, split, images), settings).evaluations[ONLY]


def compare(
    models: Mapping[str, Model | Evaluation],
    data: Any = None,
    *,
    task: str | None = None,
    split: str | None = None,
    images: Path | str | None = None,
    limit: int | None = None,
    batch_size: int = 64,
    dtype: str | None = None,
    out: Path | str | None = None,
    trust_remote_code: bool = False,
    quantize: Any = None,
    boxes: Mapping[str, str] | None = None,
) -> Compared:
    """Score several models on the same questions, and tell by a paired test how each differs from the first.

    Args:
        models: name -> model, as for `evaluate`; each that is opened here is freed before the next. Or name -> result
            of `evaluate`, and then no data.

    Returns:
        Scores, differences, intervals and p-values; as text, a table. The other arguments are those of `evaluate`.

    Raises:
        MmdoraError: as `evaluate`; or the results are of different questions.
    """
    if not models:
        raise MmdoraError("compare: name at least one model")
    done = {name: own for name, own in models.items() if isinstance(own, Evaluation)}
    if done and (len(done) < len(models) or data is not None):
        raise MmdoraError("compare: give results of evaluate alone, or models with data")
    if done:
        check_same_questions(done)
        return Compared(done, next(iter(done.values())).task.name)
    if data is None:
        raise MmdoraError("compare: say on which data")
    named = {name: own for name, own in models.items() if not isinstance(own, Evaluation)}
    settings = EvaluationSettings(_path(out), limit, batch_size, dtype, trust_remote_code, quantize, boxes)
    return evaluate_on(named, source_of(data, task, split, images), settings)


def source_of(data: Any, task: str | None, split: str | None, images: Path | str | None) -> TaskRecords:
    """The records of a task: in a folder or file, opened, or in memory."""
    root = _path(images)
    if isinstance(data, (str, Path)):
        return find(Path(data), task, split=split, images=root)
    if split is not None:
        raise MmdoraError(f"split {split}: these rows are in memory; name a folder, or leave it out")
    return TaskRecords(
        task_of(task or "exact"), data if isinstance(data, Records) else MemoryRows.of(data, root).read(), "rows"
    )


def evaluate_on(models: Mapping[str, Model], source: TaskRecords, settings: EvaluationSettings) -> Compared:
    """Evaluate models on one task, and write their results and comparison to `EvaluationSettings.folder`."""
    folder = settings.folder(source)
    _check_videos(models, source.records, settings)
    if len(models) > 1 and folder is not None:
        main_makes(lambda: Written(folder).check(COMPARISON, GALLERY))
    evaluations = {
        name: evaluated(model, processor, name, source, settings) for name, model, processor in opened(models, settings)
    }
    return compared_on(evaluations, source, settings)


def _check_videos(models: Mapping[str, Model], records: Records | Sequence[Row], settings: EvaluationSettings) -> None:
    """Raise an MmdoraError, before any model is loaded, if the records hold a video that one of them cannot read."""
    if isinstance(records, Records):
        row = next((records[int(place)] for place in np.flatnonzero(records.frames)), None)
    else:
        row = next((row for row in records if videos_of(row)), None)
    if row is None:
        return
    for name, given in models.items():
        if not isinstance(given, tuple):
            processor = load_processor(locate(str(given)).base, trust_remote_code=settings.trust_remote_code)
            try:
                family_of(processor).check_videos(row["messages"])
            except MmdoraError as error:
                raise MmdoraError(f"{name}: record {row['id']}: {error}") from None


def compared_on(evaluations: Mapping[str, Evaluation], source: TaskRecords, settings: EvaluationSettings) -> Compared:
    """Compare models on one task; the main process writes the comparison, and a page of the answers that differ."""
    count = len(next(iter(evaluations.values())).rows)
    rehearsal = "" if settings.limit is None else f", a rehearsal on the first {count:,}"
    compared = Compared(evaluations, f"{source.task.name} ({source.split}{rehearsal})", settings.folder(source))
    if compared.folder is not None and len(compared.scores) > 1 and processes().is_main_process:
        written, answers = Written(compared.folder), {name: own.rows for name, own in evaluations.items()}
        written.write_json(COMPARISON, compared.to_dict())
        records = first(source.records, settings.limit)
        written.write(GALLERY, lambda path: write_gallery(path, source.task, answers, records))
    return compared


def opened(models: Mapping[str, Model], settings: EvaluationSettings) -> Iterator[tuple[str, Any, Any]]:
    """Open one model after the other; each is freed before the next is loaded."""
    device = str(processes().device)
    for name, given in models.items():
        if isinstance(given, tuple):
            model, processor = given
        else:
            model, processor = load(
                given,
                dtype=settings.dtype,
                device=device if device.startswith("cuda") else None,
                trust_remote_code=settings.trust_remote_code,
                quantize=settings.quantize,
            )
        yield name, model, processor
        del model
        gc.collect()


def evaluated(
    model: Any, processor: Any, name: str, source: TaskRecords, settings: EvaluationSettings, suite: Suite | None = None
) -> Evaluation:
    """Evaluate one opened model, with the beams and lengths of a suite if there is one."""
    folder = settings.folder(source)
    evaluation = evaluate_records(
        model,
        processor,
        first(source.records, settings.limit),
        task=source.task,
        batch_size=settings.batch_size,
        beams=suite.beams if suite else 1,
        max_new_tokens=suite.max_new_tokens if suite else None,
        boxes=settings.boxes,
        out=None if folder is None else folder / name,
        progress=True,
    )
    if evaluation.reused and processes().is_main_process:
        Console(stderr=True).print(
            f"{name}: {evaluation.reused:,} answers of an earlier run were taken up", highlight=False, markup=False
        )
    return evaluation


def _path(given: Path | str | None) -> Path | None:
    return None if given is None else Path(given)
