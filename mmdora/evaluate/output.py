"""Writes the results of an evaluation to its folder. Without torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mmdora.errors import MmdoraError
from mmdora.evaluate.gallery import write_gallery
from mmdora.evaluate.resume import METRICS, PREDICTIONS
from mmdora.evaluate.scoring.metrics import answer_type, question_text
from mmdora.evaluate.scoring.rows import Prediction
from mmdora.evaluate.scoring.scorers import submitted
from mmdora.evaluate.scoring.scores import Scores
from mmdora.evaluate.tasks import Task
from mmdora.files import write_json
from mmdora.records.reader import Records, write_records
from mmdora.records.record import RecordFacts
from mmdora.records.row import Row
from mmdora.records.turns import answer_text

GALLERY = "errors.html"
WRITTEN = ("id", "question", "answer", "prediction", "images", "type", "score")
"""The keys of a row that are written; its "meta" is in the records already."""


def prediction_rows(records: Iterable[Row], texts: Sequence[str]) -> list[Prediction]:
    """Make rows of records and the texts generated for them, as `scoring.rows` describes them."""
    return [
        {
            "id": record["id"],
            "question": question_text(record),
            "answer": answer_text(record),
            "prediction": text,
            "images": list(map(str, record["images"])),
            "type": answer_type(record),
            "meta": record["meta"],
        }
        for record, text in zip(records, texts, strict=True)
    ]


def write_predictions(out: Path, rows: Iterable[Prediction]) -> None:
    """Write `predictions.jsonl`, a row for each record."""
    write_records(out / PREDICTIONS, ({name: row[name] for name in WRITTEN if name in row} for row in rows))


def write_complete(
    out: Path,
    task: Task,
    records: Sequence[Row] | Records,
    rows: Sequence[Prediction],
    scores: Scores | None,
    facts: Mapping[str, Any],
) -> None:
    """Write predictions with their scores, the official result file, the gallery and, last, `metrics.json`."""
    write_predictions(out, rows)
    file = write_submission(out, task, records, rows)
    if scores is not None:
        write_gallery(out / GALLERY, task, {"answer": rows}, records)
    numbers = {"n": len(rows), "server": True} if scores is None else {"n": len(rows)} | scores.to_dict()
    write_json(out / METRICS, numbers | {"submission": file.name if file else None} | dict(facts))


def write_submission(out: Path, task: Task, records: Iterable[RecordFacts], rows: Iterable[Prediction]) -> Path | None:
    """Write the file that the task's official scorer or server reads; None if the task has no such file.

    Raises:
        MmdoraError: if the records were not written by the dataset's preparation.
    """
    if task.dataset is None or task.results is None:
        return None
    predictions = {row["id"]: submitted(task.scorer, row) for row in rows}
    try:
        return task.results.write(records, predictions, out / task.results.name)
    except KeyError as error:
        raise MmdoraError(
            f"task {task.name}: the records have no 'meta.{error.args[0]}', which its result file needs; prepare them "
            f"with `{task.dataset.command}`"
        ) from None
