"""Compares two models question by question, from the predictions of evaluations. It needs neither torch nor Gradio."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from random import Random
from typing import NamedTuple

from mmdora.errors import MmdoraError
from mmdora.evaluate.resume import PREDICTIONS, read_predictions
from mmdora.evaluate.scoring.significance import Paired, mcnemar

SHOWN = 5  # Most questions that are shown for each model among those that it answered better: more would not be read.


@dataclass(frozen=True)
class Disagreement:
    """A question that one of two models answered better, with both answers and their scores by the task's scorer."""

    id: str
    question: str
    expected: str
    answers: tuple[str, str]
    scores: tuple[float, float]


@dataclass(frozen=True)
class Differences:
    """How two models compare on the questions that both were asked.

    `both`, `neither` and `paired` count full scores; they are None if scores are not between 0 and 1 (CIDEr). `first`
    and `second` hold questions on which that model scores more. Those with the largest difference come first; among
    equal differences a fixed seed chooses.
    """

    n: int
    both: int | None
    neither: int | None
    paired: Paired | None
    first: list[Disagreement]
    second: list[Disagreement]


@lru_cache(maxsize=32)  # Every visitor asks for the same comparisons.
def differences(first: Path, second: Path) -> Differences | None:
    """Compare two folders of evaluations on one task; gives None if they have no scored question in common.

    Raises:
        MmdoraError: if predictions cannot be read.
    """
    ours, theirs = _scored(first), _scored(second)
    keys = [key for key in ours if key in theirs]
    pairs = [(ours[key], theirs[key]) for key in keys]
    if not pairs:
        return None
    scores = [(one.score, two.score) for one, two in pairs]
    both = neither = paired = None
    if all(0 <= score <= 1 for pair in scores for score in pair):
        right, right_too = ([score >= 1 for score in column] for column in zip(*scores, strict=True))
        paired = mcnemar(right, right_too)
        both = sum(a and b for a, b in zip(right, right_too, strict=True))
        neither = len(pairs) - both - paired.only_first - paired.only_second
    examples = [
        Disagreement(key, one.question, one.expected, (one.answer, two.answer), own)
        for key, (one, two), own in zip(keys, pairs, scores, strict=True)
        if own[0] != own[1]
    ]
    Random(0).shuffle(examples)
    examples.sort(key=lambda example: -abs(example.scores[0] - example.scores[1]))
    better = ([e for e in examples if (e.scores[0] > e.scores[1]) == first_is][:SHOWN] for first_is in (True, False))
    return Differences(len(pairs), both, neither, paired, *better)


class _Row(NamedTuple):
    question: str
    expected: str
    answer: str
    score: float


def _scored(folder: Path) -> dict[str, _Row]:
    """Id -> scored row, for the predictions in a folder."""
    try:
        return {
            str(row["id"]): _Row(str(row["question"]), str(row["answer"]), str(row["prediction"]), float(row["score"]))
            for row in read_predictions(folder)
            if row.get("score") is not None
        }
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise MmdoraError(f"{folder.name}/{PREDICTIONS}: cannot be read ({error.strerror})") from None
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise MmdoraError(f"{folder.name}/{PREDICTIONS}: not the predictions of an evaluation ({error!r})") from None
