"""The work of one cell: an ordinary run of `mmdora train`, then answers to the validation and test questions."""

from __future__ import annotations

import gc
import json
import shutil
import time
from pathlib import Path
from typing import Any

import torch

from mmdora.adapt.inject import merge
from mmdora.config import RunConfig, config_of
from mmdora.evaluate.run import Evaluation, evaluate
from mmdora.evaluate.scoring.metrics import majority_baseline
from mmdora.models.load import load
from mmdora.study.cells import Cell
from mmdora.study.data import Splits
from mmdora.study.peak import begin_peak, peak_bytes
from mmdora.study.results import packed
from mmdora.study.tasks import RETAINED, StudyTask
from mmdora.train import train
from mmdora.version import __version__

DIGITS = 6
"""Decimal places of a score in a line: more than a test split of a hundred thousand questions has."""


def config_of_cell(cell: Cell, splits: Splits, run: Path) -> RunConfig:
    """The resolved config of a cell's run; `mmdora train` makes the same run from the file that it leaves."""
    settings = cell.settings
    training = {key: value for key, value in settings["training"].items() if key != "rows"}
    return config_of(
        {
            "model": {"base": cell.base},
            "adapt": settings["adapt"],
            "data": {"train": str(splits.file("train")), "images": str(splits.root)},
            "training": training | {"output": str(run), "report_to": []},
        }
    )


def run_cell(cell: Cell, splits: Splits, run: Path, own: Splits | None = None) -> dict[str, Any]:
    """Train and score one cell; gives its line of results.

    Args:
        own: the base's own questions, if they are known; the line then says how many are still answered right.
        run: the run folder; what an earlier, stopped attempt has left there is removed.
    """
    begun, used = time.monotonic(), time.process_time()
    if run.is_dir():
        shutil.rmtree(run)
    begin_peak()
    train(config_of_cell(cell, splits, run), say=_silent)
    peak = peak_bytes()
    done = json.loads((run / "complete.json").read_text(encoding="utf-8"))
    trained = time.process_time() - used
    model, processor = load(run, device=_device())
    merge(model)  # A merged model answers faster.
    scored = {split: _scored(model, processor, cell.task, splits, split) for split in ("validation", "test")}
    retained = _retained(model, processor, own)
    del model
    gc.collect()
    return {
        "kind": "cell",
        "key": cell.key,
        **cell.settings,
        "validation": _score(scored["validation"]),
        "test": _score(scored["test"]),
        "each": packed(_each(scored["test"])),
        **retained,
        "trainable": sum(done["trainable"].values()) if isinstance(done["trainable"], dict) else done["trainable"],
        "train_cpu_seconds": round(trained, 1),
        "train_peak_bytes": peak,
        "cpu_seconds": round(time.process_time() - used, 1),
        "seconds": round(time.monotonic() - begun, 1),
        "device": done["device"],
        "threads": done["threads"],
        "data": splits.digest,
        "versions": {"mmdora": __version__, "torch": torch.__version__},
    }


def reference(base: str, task: StudyTask, splits: Splits, own: Splits | None = None) -> dict[str, Any]:
    """The line of a task: the test scores of the base as it is, and of the question without its pictures."""
    model, processor = load(base, device=_device())
    scored = _scored(model, processor, task, splits, "test")
    blind = majority_baseline(splits.records("train"), list(splits.records("test")))
    return {
        "kind": "task",
        "base": base,
        "task": task.name,
        "base_score": _score(scored),
        **_retained(model, processor, own),
        "question_only": round(blind.overall.value, DIGITS),
        "train_questions": len(splits.records("train")),
        "validation_questions": len(splits.records("validation")),
        "questions_per_picture": splits.questions_per_picture,
        "data": splits.digest,
    }


def _scored(model: Any, processor: Any, task: StudyTask, splits: Splits, split: str) -> Evaluation:
    return evaluate(model, processor, splits.records(split), task=task.task)


def _retained(model: Any, processor: Any, own: Splits | None) -> dict[str, float]:
    return {} if own is None else {"retained": _score(_scored(model, processor, RETAINED, own, "test"))}


def _score(evaluation: Evaluation) -> float:
    """The mean over the questions, by which arms are compared; for tasks of exact answers it is the official number."""
    each = _each(evaluation)
    return round(sum(each) / len(each), DIGITS)


def _each(evaluation: Evaluation) -> tuple[float, ...]:
    assert evaluation.scores is not None  # They are missing only for records without answers.
    return evaluation.scores.each


def _device() -> str | None:
    return "cuda" if torch.cuda.is_available() else None


def _silent(line: str) -> None:
    """A cell's plan and notes are in its run folder; the study tells one line for each cell."""
