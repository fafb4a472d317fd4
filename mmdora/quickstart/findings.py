"""Turns the scores and predictions of the quickstart into the sentences, tables and pictures of its report."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mmdora.evaluate.scoring.significance import compare, mcnemar
from mmdora.evaluate.table import ScoreRow
from mmdora.evaluate.tasks import TASKS
from mmdora.quickstart.families import EASY_VQA, QuickTask
from mmdora.quickstart.report import GalleryExample
from mmdora.records.images import FileRef, image_bytes
from mmdora.records.row import Row

BASELINE = "question only"
GOAL, GOAL_BY_TYPE = 0.95, 0.90  # Accuracies on easy-VQA that the report calls reached: over all, and for each type.
PICTURES = 6  # The most questions in each part of the gallery, so that the page stays short.

Predictions = Mapping[str, Sequence[Mapping[str, Any]]]
"""Name of a model -> its rows of predictions.jsonl; all models answer the same questions."""


@dataclass(frozen=True)
class TaskOutcome:
    """The answers of the base and of both methods to the questions of one task.

    Attributes:
        scores: name of a model -> `Scores.to_dict()`; on easy-VQA, `BASELINE` is one of the models.
    """

    task: QuickTask
    scores: Mapping[str, Mapping[str, Any]]
    predictions: Predictions
    questions: Sequence[Row]

    def table(self) -> list[ScoreRow]:
        """A row for each model."""
        notes = {BASELINE: "majority answer of each question"}
        return [ScoreRow(model, scores, notes.get(model, "")) for model, scores in self.scores.items()]

    def lines(self) -> list[str]:
        """Sentences that say which method is better."""
        if self.task.heading == EASY_VQA:
            return verdict(self.scores, self.predictions)
        return [task_verdict(self.task.heading, self.task.task, self.scores, self.predictions)]

    def galleries(self) -> dict[str, list[GalleryExample]]:
        """Title -> questions with their pictures and answers."""
        pictures = [row["images"] for row in self.questions]
        sections = galleries(self.predictions, pictures, graded=TASKS[self.task.task].scorer != "caption")
        return {f"{self.task.heading}: {heading}": examples for heading, examples in sections.items()}


def verdict(scores: Mapping[str, Mapping[str, Any]], predictions: Predictions) -> list[str]:
    """Sentences that say which method is better and by how much, as far as this test set can tell.

    Args:
        scores: name of a model -> `Scores.to_dict()`.
    """
    lora, dora = (predictions[name] for name in ("LoRA", "DoRA"))
    accuracy = {name: score["overall"]["score"] for name, score in scores.items()}
    gain = compare("exact", lora, dora)
    low, high = gain.interval
    pair = mcnemar([_right(row) for row in lora], [_right(row) for row in dora])
    points = round(100 * gain.difference, 1) + 0.0  # "+ 0.0" turns minus zero into zero.
    difference = f"{points:+.1f} points (95% interval {100 * low:+.1f} to {100 * high:+.1f})"
    both = f"DoRA {accuracy['DoRA']:.1%}, LoRA {accuracy['LoRA']:.1%}: {difference}"
    if low > 0 or high < 0:
        first = f"{'DoRA' if low > 0 else 'LoRA'} is better here. {both}."
    else:
        first = f"LoRA and DoRA cannot be told apart here. {both}."
    reached = [f"{name} {'reaches' if _reaches(scores[name]) else 'misses'} it" for name in ("LoRA", "DoRA")]
    return [
        first,
        f"The base answers {accuracy['base']:.1%}; the question without its picture is worth {accuracy[BASELINE]:.1%}.",
        f"Goal of {GOAL:.0%} over all and {GOAL_BY_TYPE:.0%} for each answer type: {', '.join(reached)}.",
        f"Only LoRA is right on {pair.only_first:,} questions, only DoRA on {pair.only_second:,} (McNemar p = "
        f"{pair.p:.2g}; the interval resamples pictures).",
    ]


def task_verdict(heading: str, task: str, scores: Mapping[str, Mapping[str, Any]], predictions: Predictions) -> str:
    """A line that says what the two methods gained over the base, for a task without a goal of its own."""
    scorer, parts = TASKS[task].scorer, []
    for name in ("LoRA", "DoRA"):
        over_base = compare(scorer, predictions["base"], predictions[name])
        low, high = over_base.interval
        gain = f"{100 * over_base.difference:+.1f} ({100 * low:+.1f} to {100 * high:+.1f})"
        parts.append(f"{name} {100 * scores[name]['overall']['score']:.1f}, over the base {gain}")
    both = compare(scorer, predictions["LoRA"], predictions["DoRA"])
    low, high = both.interval
    metric = scores["base"]["metric"]
    return (
        f"{heading[0].upper()}{heading[1:]}, {metric} × 100: base {100 * scores['base']['overall']['score']:.1f}; "
        f"{'; '.join(parts)}; DoRA minus LoRA {100 * both.difference:+.1f} ({100 * low:+.1f} to {100 * high:+.1f})."
    )


def _right(row: Mapping[str, Any]) -> bool:
    return row["score"] == 1


def _reaches(score: Mapping[str, Any]) -> bool:
    return score["overall"]["score"] >= GOAL and all(
        part["score"] >= GOAL_BY_TYPE for part in score["by_type"].values()
    )


def galleries(
    predictions: Predictions, pictures: Sequence[Sequence[FileRef]], *, graded: bool = True
) -> dict[str, list[GalleryExample]]:
    """Title -> questions with their pictures and answers: some drawn at random, and some that an adapted model got
    wrong.

    The wrong answers begin with questions on which the two adapted models differ.

    Args:
        pictures: the pictures of each question.
        graded: whether answers are right or wrong. Captions are neither, so they have no second part.
    """
    order = list(range(len(pictures)))
    random.Random(0).shuffle(order)

    def wrong(i: int) -> tuple[bool, bool]:
        return not _right(predictions["LoRA"][i]), not _right(predictions["DoRA"][i])

    def example(i: int) -> GalleryExample:
        row = predictions["base"][i]
        answers = {
            name: (rows[i]["prediction"], _right(rows[i]) if graded else None) for name, rows in predictions.items()
        }
        return GalleryExample([image_bytes(image)[0] for image in pictures[i]], row["question"], row["answer"], answers)

    chosen = {"drawn at random": [example(i) for i in order[:PICTURES]]}
    if graded:
        missed = sorted((i for i in order[PICTURES:] if any(wrong(i))), key=lambda i: all(wrong(i)))
        chosen["where LoRA or DoRA is wrong (chosen, not typical)"] = [example(i) for i in missed[:PICTURES]]
    return chosen
