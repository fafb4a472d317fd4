"""Writes the results of an evaluation to its folder. This module imports no torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from mmdora.errors import MmdoraError
from mmdora.evaluate.gallery import write_gallery
from mmdora.evaluate.resume import METRICS, PREDICTIONS, line_digest
from mmdora.evaluate.scoring.metrics import answer_type, question_text
from mmdora.evaluate.scoring.rows import Prediction
from mmdora.evaluate.scoring.scorers import submitted
from mmdora.evaluate.scoring.scores import Scores
from mmdora.evaluate.tasks import Task
from mmdora.files import CHECKSUM, with_checksum
from mmdora.outputs.written import Written
from mmdora.records.reader import Records, write_records
from mmdora.records.record import RecordFacts
from mmdora.records.row import Row, videos_of
from mmdora.records.turns import answer_text

GALLERY = "errors.html"
WRITTEN = ("id", "question", "answer", "prediction", "images", "videos", "type", "score")
"""The keys of a row that are written; "meta" is left out, because the records hold it."""


def prediction_rows(records: Iterable[Row], texts: Sequence[str]) -> list[Prediction]:
    """Make rows of records and the texts generated for them, as `scoring.rows` describes them."""
    return [
        {
            "id": record["id"],
            "question": question_text(record),
            "answer": answer_text(record),
            "prediction": text,
            "images": list(map(str, record["images"])),
            **({"videos": list(map(str, videos_of(record)))} if videos_of(record) else {}),
            "type": answer_type(record),
            "meta": record["meta"],
        }
        for record, text in zip(records, texts, strict=True)
    ]


def write_predictions(written: Written, key: str, rows: Iterable[Prediction]) -> None:
    """Write `predictions.jsonl`, a row for each record, each with the checksum that `finished` compares."""
    lines = (
        {name: row[name] for name in WRITTEN if name in row} | {CHECKSUM: line_digest(key, number, row)}
        for number, row in enumerate(rows, 1)
    )
    written.write(PREDICTIONS, partial(_write_lines, lines))


def _write_lines(rows: Iterable[Mapping[str, Any]], path: Path) -> None:
    write_records(path, rows)


def write_complete(
    written: Written,
    task: Task,
    records: Sequence[Row] | Records,
    rows: Sequence[Prediction],
    scores: Scores | None,
    facts: Mapping[str, Any],
) -> None:
    """Write predictions with their scores, the official result file, the gallery and, last, `metrics.json`.

    Args:
        facts: what the evaluation was made from, with its `key`.
    """
    write_predictions(written, facts["key"], rows)
    submission = write_submission(written, task, records, rows)
    if scores is not None:
        written.write(GALLERY, lambda path: write_gallery(path, task, {"answer": rows}, records))
    numbers = {"n": len(rows), "server": True} if scores is None else {"n": len(rows)} | scores.to_dict()
    numbers |= {"submission": submission.name if submission else None} | dict(facts)
    written.write_json(METRICS, with_checksum(numbers))


def submission_of(task: Task) -> str | None:
    """The name of the file that the task's official scorer or server reads; None if the task has no such file."""
    return None if task.dataset is None or task.results is None else task.results.name


def write_submission(
    written: Written, task: Task, records: Iterable[RecordFacts], rows: Iterable[Prediction]
) -> Path | None:
    """Write the file that the task's official scorer or server reads; None if the task has no such file.

    Raises:
        MmdoraError: if the records were not written by the dataset's preparation.
    """
    if task.dataset is None or task.results is None:
        return None
    predictions = {row["id"]: submitted(task.scorer, row) for row in rows}
    try:
        written.write(task.results.name, partial(task.results.write, records, predictions))
    except KeyError as error:
        raise MmdoraError(
            f"task {task.name}: the records have no 'meta.{error.args[0]}', which its result file needs; prepare them "
            f"with `{task.dataset.command}`"
        ) from None
    return written.folder / task.results.name
