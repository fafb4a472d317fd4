"""Evaluates a model by generation: asks every question of a task, scores the answers, and keeps everything on disk.

If there are several processes (`accelerate launch`), each answers a share of the batches. In the end all have all
answers, and the first process scores and writes them.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import broadcast_object_list, gather_object
from tqdm import tqdm

from mmdora.errors import MmdoraError
from mmdora.evaluate.asking import Asking, plan, survey
from mmdora.evaluate.output import prediction_rows, write_complete, write_predictions
from mmdora.evaluate.processes import processes
from mmdora.evaluate.resume import Journal, finished, key_of
from mmdora.evaluate.scoring.rows import Prediction
from mmdora.evaluate.scoring.scorers import ready, score_rows
from mmdora.evaluate.scoring.scores import Scores
from mmdora.evaluate.tasks import Task, task_of
from mmdora.predict.answers import generate
from mmdora.records.reader import Records
from mmdora.records.row import Row
from mmdora.version import __version__


@dataclass(frozen=True)
class Evaluation:
    """The answers of a model on a task, and their scores.

    Attributes:
        rows: a row for each record, in their order, as `scoring.rows` describes; scored rows have a `score`.
        scores: the scores; None if the records hold no answers, so that only an official server can score the results.
        reused: number of answers that were taken from an earlier run.
    """

    task: Task
    rows: list[Prediction]
    scores: Scores | None
    reused: int = 0


def evaluate(
    model: Any,
    processor: Any,
    records: Records | Sequence[Row],
    *,
    task: str | Task = "exact",
    batch_size: int = 64,
    beams: int = 1,
    max_new_tokens: int | None = None,
    out: Path | str | None = None,
    progress: bool = False,
) -> Evaluation:
    """Answer the last question of every record and score the answers as the task's papers do.

    The answers are kept below `out` as they come. If a call was killed, the same call goes on from its answers, and
    gives the same result as an undisturbed one.

    Args:
        task: the task, or its name.
        batch_size: most questions in a batch.
        beams: number of beams; with more than 1, beam search replaces greedy decoding.
        max_new_tokens: the most tokens of an answer; by default the task's.
        out: folder for `predictions.jsonl` (id, question, answer, prediction, images, type, score; in the order of the
            records), the task's official result file, `errors.html`, and `metrics.json`, which is written last.
        progress: whether to show a bar with the time left.

    Raises:
        MmdoraError: if there are no records, if an image cannot be read (the message names its record), or if a package
            that the task's scorer or result file needs is missing. A missing package is found before anything is
            generated.
    """
    task = task if isinstance(task, Task) else task_of(task)
    out, main = None if out is None else Path(out), processes().is_main_process
    if not len(records):
        raise MmdoraError("nothing to evaluate: there are no records")
    if out is not None and task.results is not None:
        task.results.check()
    asking = Asking(processor, task)
    questions = survey(records, asking)
    if questions.answered:
        ready(task.scorer)
    settings = {"batch_size": batch_size, "beams": beams, "max_new_tokens": max_new_tokens or task.max_new_tokens}
    made_from = {"task": task.name, "records": questions.digest, "model": _digest(model), **settings}
    made_from |= {"mmdora": __version__, "torch": torch.__version__}
    journal = Journal(out, key_of(made_from), processes().process_index)

    begun = time.perf_counter()
    batches = plan(questions.lengths, questions.pictures, batch_size)
    texts, reused = _answer(
        model, processor, records, asking, batches, journal,
        max_new_tokens=settings["max_new_tokens"], beams=beams, progress=progress,
    )  # fmt: skip
    seconds = time.perf_counter() - begun

    rows: list[Prediction] = prediction_rows(records, texts)
    scored: list[Any] = [None]
    if main:
        if out is not None:
            write_predictions(out, rows)  # They are written before scoring, because scoring may fail.
        scored = [score_rows(task.scorer, rows) if questions.answered else None]
    scores: Scores | None = broadcast_object_list(scored)[0]
    if scores is not None:
        rows = [{**row, "score": score} for row, score in zip(rows, scores.each, strict=True)]
    if main and out is not None:
        facts = made_from | {"key": journal.key, "reused": reused}
        if reused < len(rows):
            facts |= {"seconds": round(seconds, 2), "questions_per_s": round((len(rows) - reused) / seconds, 1)}
        write_complete(out, task, records, rows, scores, facts)
        journal.remove()
    return Evaluation(task, rows, scores, reused)


def _answer(
    model: Any,
    processor: Any,
    records: Records | Sequence[Row],
    asking: Asking,
    batches: list[list[int]],
    journal: Journal,
    *,
    max_new_tokens: int,
    beams: int,
    progress: bool,
) -> tuple[list[str], int]:
    """The answers of all records, in their order, on every process; and how many of them are from an earlier run."""
    together = processes()
    complete = finished(journal.out, journal.key) if together.is_main_process else None
    kept = dict(gather_object(list(enumerate(complete)) if complete else []))
    if kept:
        return [kept[row] for row in range(len(records))], len(records)
    answers = dict(gather_object(list(journal.kept().items())))
    left = [number for number in range(len(batches)) if number not in answers]
    mine = left[together.process_index :: together.num_processes]
    new: dict[int, list[str]] = {}
    journal.begin()
    try:
        with tqdm(
            total=sum(len(batches[number]) for number in mine),
            desc=f"evaluate {asking.task.name}",
            unit="q",
            disable=not (progress and together.is_main_process),
        ) as bar:
            for number, prompts in asking.prompts(records, batches, mine):
                new[number] = generate(
                    model,
                    processor,
                    prompts,
                    max_new_tokens=max_new_tokens,
                    batch_size=len(prompts),
                    beams=beams,
                    answers=asking.answers,
                )
                journal.add(number, new[number])
                bar.update(len(prompts))
    finally:
        journal.close()
    reused = sum(len(batches[number]) for number in answers)
    answers |= dict(gather_object(list(new.items())))
    pairs = [pair for number, batch in enumerate(batches) for pair in zip(batch, answers[number], strict=True)]
    return [text for _, text in sorted(pairs)], reused


def _digest(model: Any) -> str:
    """A hash of a model's weights, made from the sum and the norm of each tensor in float64."""
    digest = hashlib.sha256(str(model.config.model_type).encode())
    for name, tensor in model.state_dict().items():
        sums = [
            tensor.sum(dtype=torch.float64),
            torch.linalg.vector_norm(tensor.to(torch.float32), dtype=torch.float64),
        ]
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} {[float(s).hex() for s in sums]}".encode())
    return digest.hexdigest()
