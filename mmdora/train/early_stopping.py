"""Scores generated answers during training, and ends a run that no longer gets better."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from mmdora.config import RunConfig
from mmdora.evaluate.run import evaluate
from mmdora.records.row import Row

LOSS, SCORE = "eval_loss", "eval_score"


@dataclass(frozen=True)
class Answers:
    """A subset of the held-out records that is answered at each evaluation and scored as by `mmdora eval`."""

    processor: Any
    records: Sequence[Row]
    task: str
    batch_size: int

    def score(self, model: Any) -> float:
        """The task's score for `model`. The random states are restored afterwards, so that training is not affected."""
        with _same_randomness():
            evaluation = evaluate(model, self.processor, self.records, task=self.task, batch_size=self.batch_size)
        assert evaluation.scores is not None, "fit has refused records without answers"
        return evaluation.scores.overall.value


@dataclass(frozen=True)
class EarlyStopping:
    """Ends a run when `patience` evaluations in a row were no better than the best before them.

    The decision depends only on the log of the run, which is part of every checkpoint, so a run that was interrupted
    and resumed ends at the same step as one that was not.

    Args:
        metric: `eval_score`, where more is better, or `eval_loss`, where less is.
    """

    patience: int
    metric: str

    def exhausted(self, history: Sequence[Mapping[str, Any]]) -> bool:
        """Whether the last `patience` results in the log are no better than the best before them."""
        sign = 1 if self.metric == SCORE else -1
        results = [sign * entry[self.metric] for entry in history if self.metric in entry]
        return len(results) > self.patience and max(results[-self.patience :]) <= max(results[: -self.patience])


def metric(config: RunConfig) -> str:
    """The name of the metric that chooses the best checkpoint."""
    return LOSS if config.data.eval_generate_rows is None else SCORE


def measured(config: RunConfig, data: Mapping[str, Any]) -> dict[str, Any]:
    """What the results of evaluations are results of; they can be compared if it is equal.

    Args:
        data: path of a file -> a hash of its content.
    """
    rows = {"rows": config.data.eval_rows, "answered": config.data.eval_generate_rows}
    files = {
        name: [data.get(str(source.eval)), source.eval_task]
        for name, source in config.data.sources.items()
        if source.eval is not None
    }
    asked = {} if config.data.template is None else {"template": data.get(str(config.data.template))}
    return {"metric": metric(config), **rows, **asked, "files": files}


@contextmanager
def _same_randomness() -> Iterator[None]:
    python, arrays = random.getstate(), np.random.get_state()
    devices = range(torch.cuda.device_count()) if torch.cuda.is_available() else ()
    with torch.random.fork_rng(devices):
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(arrays)
