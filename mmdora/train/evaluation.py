"""Evaluates held-out records during training: their loss, and the score of answers to some of them, for each task."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset
from transformers.trainer_utils import speed_metrics

from mmdora.config import RunConfig
from mmdora.train.early_stopping import LOSS, SCORE, Answers
from mmdora.train.objective import Objective
from mmdora.train.processes import Processes

Metrics = dict[str, float]


class Evaluation:
    """Measures held-out records every `training.eval_every` steps.

    Args:
        held_out: the held-out rows, or name of each task -> its held-out rows.
        collate: function that makes a batch of a list of rows.
        answers: prefix of metrics -> records to answer and score beside the loss.
    """

    def __init__(
        self,
        config: RunConfig,
        held_out: Dataset[Any] | Mapping[str, Dataset[Any]],
        collate: Callable[[list[Any]], dict[str, Any]],
        answers: Mapping[str, Answers],
        processes: Processes,
    ):
        self.held_out, self.collate, self.answers, self.processes = held_out, collate, answers, processes
        self.rows, self.workers = config.training.batch_size, config.data.workers

    def run(self, model: Any, objective: Objective, log: Callable[[Metrics], None]) -> Metrics:
        """Evaluate and log the results of each task; if there are several tasks, also the means over them.

        Returns:
            All results. `eval_loss` or `eval_score` chooses the best checkpoint.
        """
        model.eval()
        try:
            if not isinstance(self.held_out, Mapping):
                metrics = self._measured(model, objective, self.held_out, "eval")
                log(metrics)
                return metrics
            results: Metrics = {}
            for task, rows in self.held_out.items():
                metrics = self._measured(model, objective, rows, f"eval_{task}")
                log(metrics)
                results |= metrics
            means = self._means(results, list(self.held_out))
            log(means)
            return results | means
        finally:
            model.train()

    def _measured(self, model: Any, objective: Objective, rows: Any, prefix: str) -> Metrics:
        begun = time.time()
        metrics = {f"{prefix}_loss": self._loss(model, objective, rows)}
        if prefix in self.answers:
            # Generation calls parts of the model by themselves, past the forward that has the run's autocast around it.
            with self.processes.accelerator.autocast():
                metrics[f"{prefix}_score"] = self.answers[prefix].score(model)
        steps = -(-len(rows) // (self.rows * self.processes.count))
        return metrics | speed_metrics(prefix, begun, num_samples=len(rows), num_steps=steps)

    def _loss(self, model: Any, objective: Objective, rows: Any) -> float:
        """The mean over all rows, where each row counts with the mean loss of its batch."""
        accelerator, losses = self.processes.accelerator, []
        loader = DataLoader(
            rows,
            batch_size=self.rows,
            collate_fn=self.collate,
            num_workers=self.workers,
            pin_memory=torch.cuda.is_available(),
        )
        with torch.no_grad():
            for batch in accelerator.prepare(loader):
                loss = objective.evaluate(model, batch, objective.items([batch]))
                # The last batch may have fewer rows, and accelerate drops the surplus of the repeated values.
                losses.append(accelerator.gather_for_metrics(loss.detach().repeat(self.rows)))
        return float(torch.cat(losses).float().cpu().numpy().mean())  # pyright: ignore[reportArgumentType]

    @staticmethod
    def _means(results: Metrics, tasks: list[str]) -> Metrics:
        means = {}
        for ending in (LOSS.removeprefix("eval"), SCORE.removeprefix("eval")):
            if values := [results[key] for key in (f"eval_{task}{ending}" for task in tasks) if key in results]:
                means[f"eval{ending}"] = sum(values) / len(values)
        return means
