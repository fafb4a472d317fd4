"""What the quickstart found, in words and pictures: from scores and predictions to a `Report`."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmdora.evaluate.significance import compare, mcnemar
from mmdora.report import Example

BASELINE = "question only"
GOAL, GOAL_BY_TYPE = 0.95, 0.90
PICTURES = 6

Predictions = Mapping[str, Sequence[Mapping[str, Any]]]  # model -> rows of predictions.jsonl, same questions


def verdict(scores: Mapping[str, Mapping[str, Any]], predictions: Predictions) -> list[str]:
    """Which method is better and by how much, as far as this test can tell.

    Args:
        scores: model -> `Scores.to_dict()`.
    """
    lora, dora = (predictions[name] for name in ("LoRA", "DoRA"))
    accuracy = {name: score["overall"]["score"] for name, score in scores.items()}
    found = compare("exact", lora, dora)
    low, high = found.interval
    pair = mcnemar([_right(row) for row in lora], [_right(row) for row in dora])
    points = 100 * found.difference
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
        "One seed and one setting: another seed may turn a small difference round.",
    ]


def _right(row: Mapping[str, Any]) -> bool:
    return row["score"] == 1


def _reaches(score: Mapping[str, Any]) -> bool:
    return score["overall"]["score"] >= GOAL and all(
        part["score"] >= GOAL_BY_TYPE for part in score["by_type"].values()
    )


def galleries(predictions: Predictions, pictures: Sequence[str], root: Path) -> dict[str, list[Example]]:
    """Questions drawn at random, and questions that an adapted model gets wrong (those they differ on first)."""
    order = list(range(len(pictures)))
    random.Random(0).shuffle(order)

    def wrong(i: int) -> tuple[bool, bool]:
        return not _right(predictions["LoRA"][i]), not _right(predictions["DoRA"][i])

    def example(i: int) -> Example:
        row = predictions["base"][i]
        answers = {name: (rows[i]["prediction"], _right(rows[i])) for name, rows in predictions.items()}
        return Example((root / pictures[i]).read_bytes(), row["question"], row["answer"], answers)

    missed = sorted((i for i in order[PICTURES:] if any(wrong(i))), key=lambda i: all(wrong(i)))
    return {
        "Drawn at random": [example(i) for i in order[:PICTURES]],
        "Where LoRA or DoRA is wrong (chosen, not typical)": [example(i) for i in missed[:PICTURES]],
    }


def curve(run: Path) -> list[tuple[int, float]]:
    """(step, loss) of a run folder's log."""
    with (run / "log.jsonl").open(encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    return [(row["step"], row["loss"]) for row in rows if "loss" in row]
