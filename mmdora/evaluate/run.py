"""Evaluates a model: asks every question of a task, scores the answers, and keeps everything on disk.

If there are several processes (`accelerate launch`), each answers a share of the batches. In the end all have all
answers, and the first process scores and writes them.
"""

from __future__ import annotations

import hashlib
import json
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import broadcast_object_list, gather_object
from tqdm import tqdm

from mmdora.errors import MmdoraError
from mmdora.evaluate.asking import Asking, plan, survey
from mmdora.evaluate.output import GALLERY, prediction_rows, submission_of, write_complete, write_predictions
from mmdora.evaluate.processes import main_makes, processes
from mmdora.evaluate.resume import METRICS, PREDICTIONS, Journal, finished, key_in, key_of
from mmdora.evaluate.scoring.rows import Prediction
from mmdora.evaluate.scoring.scorers import ready, score_rows
from mmdora.evaluate.scoring.scores import Scores
from mmdora.evaluate.tasks import Task, task_of
from mmdora.families import Prompt
from mmdora.families.boxes import BoxRule, boxed
from mmdora.families.thoughts import without_thought
from mmdora.outputs.lock import locked
from mmdora.outputs.stop import stoppable
from mmdora.outputs.written import Written
from mmdora.predict.answers import generate
from mmdora.predict.likelihood import log_probabilities
from mmdora.records.boxes import WRITTEN
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
        earlier: number of answers that come before the last ones of conversations; they are neither asked nor scored.
    """

    task: Task
    rows: list[Prediction]
    scores: Scores | None
    reused: int = 0
    earlier: int = 0


def evaluate(
    model: Any,
    processor: Any,
    records: Records | Sequence[Row],
    *,
    task: str | Task = "exact",
    batch_size: int = 64,
    beams: int = 1,
    max_new_tokens: int | None = None,
    boxes: Mapping[Any, str] | None = None,
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
        boxes: what the numbers of boxes in the records are, and how the model writes them, as the config's
            `data.boxes`: `{"from": "pixels", "to": "thousand"}`.
        out: folder for `predictions.jsonl` (id, question, answer, prediction, images, type, score; in the order of the
            records), the task's official result file, `errors.html`, and `metrics.json`, which is written last.
        progress: whether to show a bar with the time left.

    Raises:
        MmdoraError: if there are no records, if an image cannot be read (the message names its record), or if a package
            that the task's scorer or result file needs is missing; if another run writes to `out`, or a file there is
            not an evaluation's or was changed. All but broken pictures is found before anything is generated.
        Interrupted: after SIGTERM or SIGINT; the answers so far are kept.
    """
    task = task if isinstance(task, Task) else task_of(task)
    settings = {"batch_size": batch_size, "beams": beams, "max_new_tokens": max_new_tokens or task.max_new_tokens}
    records = boxed(processor, records, boxes)
    job = _begin(model, processor, records, task, None if out is None else Path(out), settings)
    with stoppable(job.left, main=processes().is_main_process), ExitStack() as held:
        main_makes(partial(_hold, job, held))
        begun = time.perf_counter()
        texts, reused = _answer(job, progress)
        return _finish(job, texts, reused, time.perf_counter() - begun)


@dataclass(frozen=True)
class _Job:
    """What an evaluation asks, and where it keeps the answers.

    Attributes:
        settings: batch_size, beams, max_new_tokens.
        made_from: all that decides the answers; the journal's key is its hash.
        answered: whether the records hold answers to score by.
        earlier: how many answers come before the last ones.
    """

    model: Any
    processor: Any
    records: Records | Sequence[Row]
    asking: Asking
    batches: list[list[int]]
    settings: dict[str, int]
    made_from: dict[str, Any]
    journal: Journal
    answered: bool
    earlier: int

    @property
    def task(self) -> Task:
        return self.asking.task

    def left(self) -> str:
        """What a signal has left, in words."""
        if self.journal.out is None:
            return "no answer was kept"
        count = sum(map(len, self.journal.kept().values()))
        return (
            f"{count:,} of {len(self.records):,} answers are kept in {self.journal.out}; the same command goes on "
            "from there"
        )


def _begin(
    model: Any,
    processor: Any,
    records: Records | Sequence[Row],
    task: Task,
    out: Path | None,
    settings: dict[str, int],
) -> _Job:
    """Check what can be known before anything is generated, and plan the batches."""
    if not len(records):
        raise MmdoraError("nothing to evaluate: there are no records")
    if out is not None and task.results is not None:
        task.results.check()
    asking = Asking(processor, task)
    questions = survey(records, asking, contents=out is not None)
    if questions.answered:
        ready(task.scorer)
    made_from = {"task": task.name, "records": questions.digest, "model": _digest(model), **settings}
    made_from |= {"mmdora": __version__, "torch": torch.__version__}
    batches = plan(questions.lengths, questions.pictures, settings["batch_size"])
    journal = Journal(out, key_of(made_from), processes().process_index)
    return _Job(
        model, processor, records, asking, batches, settings, made_from, journal, questions.answered, questions.earlier
    )


def _hold(job: _Job, held: ExitStack) -> None:
    """Keep other runs out of the folder until `held` is closed, and check that it may be written. Main process only.

    Raises:
        MmdoraError: another run writes there; or a file there is not an evaluation's, or was changed.
    """
    out = job.journal.out
    if out is None:
        return
    held.enter_context(locked(out))
    before = key_in(out)
    if finished(out, job.journal.key, len(job.records)) is None and before is not None:
        print(f"{out}: holds answers of another model, task or settings, which are replaced", file=sys.stderr)
    names = (PREDICTIONS, METRICS, GALLERY, submission_of(job.task))
    Written(out).check(*(name for name in names if name is not None))


def _finish(job: _Job, texts: list[str], reused: int, seconds: float) -> Evaluation:
    """Score the answers and write the files; only the main process does so, and all get the scores."""
    out, main = job.journal.out, processes().is_main_process
    rows: list[Prediction] = prediction_rows(job.records, texts)
    scored: list[Any] = [None]
    if main:
        if out is not None:  # They are written before scoring, because scoring may fail.
            write_predictions(Written(out), job.journal.key, rows)
        scored = [score_rows(job.task.scorer, rows) if job.answered else None]
    scores: Scores | None = broadcast_object_list(scored)[0]
    rows = [_with_boxes(job, *pair) for pair in zip(job.records, rows, strict=True)]
    if scores is not None:
        rows = [{**row, "score": score} for row, score in zip(rows, scores.each, strict=True)]
    if main and out is not None:
        facts = job.made_from | {"key": job.journal.key, "reused": reused, "earlier_answers": job.earlier}
        if reused < len(rows):
            facts |= {"seconds": round(seconds, 2), "questions_per_s": round((len(rows) - reused) / seconds, 1)}
        write_complete(Written(out), job.task, job.records, rows, scores, facts)
        job.journal.remove()
    return Evaluation(job.task, rows, scores, reused, job.earlier)


def _with_boxes(job: _Job, record: Row, row: Prediction) -> Prediction:
    """The row with the boxes of its answer and its prediction, as shares of the picture, if its record declares any."""
    if record["meta"].get(WRITTEN) is None or not record["images"]:
        return row
    rule = BoxRule.of(job.asking.family.processor, None)
    return {**row, "boxes": {name: rule.found(record, row[name]) for name in ("answer", "prediction")}}


def _answer(job: _Job, progress: bool) -> tuple[list[str], int]:
    """The answers of all records, in their order, on every process; and how many of them are from an earlier run."""
    together, journal, count = processes(), job.journal, len(job.records)
    complete = main_makes(lambda: finished(journal.out, journal.key, count))
    if complete:
        return complete, count
    answers = dict(gather_object(list(journal.kept().items())))
    left = [number for number in range(len(job.batches)) if number not in answers]
    mine = left[together.process_index :: together.num_processes]
    journal.begin()
    try:
        new = _ask(job, mine, progress and together.is_main_process)
    finally:
        journal.close()
    reused = sum(len(job.batches[number]) for number in answers)
    answers |= dict(gather_object(list(new.items())))
    pairs = [pair for number, batch in enumerate(job.batches) for pair in zip(batch, answers[number], strict=True)]
    return [text for _, text in sorted(pairs)], reused


def _ask(job: _Job, numbers: list[int], progress: bool) -> dict[int, list[str]]:
    """Number of a batch -> its answers; each is kept as it comes."""
    answers: dict[int, list[str]] = {}
    total = sum(len(job.batches[number]) for number in numbers)
    with tqdm(total=total, desc=f"evaluate {job.task.name}", unit="q", disable=not progress) as bar:
        for number, prompts in job.asking.prompts(job.records, job.batches, numbers):
            answers[number] = _answers(job, number, prompts)
            job.journal.add(number, answers[number])
            bar.update(len(prompts))
    return answers


def _answers(job: _Job, number: int, prompts: list[Prompt]) -> list[str]:
    """The answers to the questions of a batch: texts, or for each question the likelihoods of its options as JSON."""
    if job.task.options is None:
        texts = generate(
            job.model,
            job.processor,
            prompts,
            max_new_tokens=job.settings["max_new_tokens"],
            batch_size=len(prompts),
            beams=job.settings["beams"],
            answers=job.asking.answers,
        )
        return [without_thought(text) for text in texts]
    rows = [job.records[row] for row in job.batches[number]]
    asked = [job.asking.continuations(row, prompt) for row, prompt in zip(rows, prompts, strict=True)]
    together = [option for options in asked for option in options]
    sums = iter(log_probabilities(job.model, job.processor, together, batch_size=job.settings["batch_size"]))
    return [json.dumps([[round(next(sums), 4), len(text.strip())] for _, text, _ in options]) for options in asked]


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
