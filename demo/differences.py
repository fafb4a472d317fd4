"""Where two models differ, question by question, from the predictions that evaluations left. No torch, no Gradio."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from random import Random

from mmdora.errors import MmdoraError
from mmdora.evaluate.resume import PREDICTIONS, read_predictions
from mmdora.evaluate.significance import Paired, mcnemar

SHOWN = 5  # questions for each of the two that is better there


@dataclass(frozen=True)
class Example:
    """A question that one of them answered better; scores as the task's scorer gives them."""

    question: str
    expected: str
    answers: tuple[str, str]
    scores: tuple[float, float]


@dataclass(frozen=True)
class Differences:
    """Two models on the questions that both were asked.

    `both`, `neither` and `paired` count full scores, and are None where scores are not between 0 and 1 (CIDEr).
    `first` and `second` are questions on which that model scores more, those furthest apart before the others,
    chosen at random by a fixed seed among equals.
    """

    n: int
    both: int | None
    neither: int | None
    paired: Paired | None
    first: list[Example]
    second: list[Example]


def differences(first: Path, second: Path) -> Differences | None:
    """Compare two folders of one task's evaluation; None where they share no scored question.

    Raises:
        MmdoraError: predictions that cannot be read.
    """
    ours, theirs = _scored(first), _scored(second)
    shared = [key for key in ours if key in theirs]
    if not shared:
        return None
    pairs = [(ours[key], theirs[key]) for key in shared]
    scores = [(float(one["score"]), float(two["score"])) for one, two in pairs]
    both = neither = paired = None
    if all(0 <= score <= 1 for pair in scores for score in pair):
        right, right_too = ([score >= 1 for score in column] for column in zip(*scores, strict=True))
        paired = mcnemar(right, right_too)
        both = sum(a and b for a, b in zip(right, right_too, strict=True))
        neither = len(shared) - both - paired.only_first - paired.only_second
    examples = [
        Example(one["question"], one["answer"], (one["prediction"], two["prediction"]), own)
        for (one, two), own in zip(pairs, scores, strict=True)
        if own[0] != own[1]
    ]
    Random(0).shuffle(examples)
    examples.sort(key=lambda example: -abs(example.scores[0] - example.scores[1]))
    better = ([e for e in examples if (e.scores[0] > e.scores[1]) == first_is][:SHOWN] for first_is in (True, False))
    return Differences(len(shared), both, neither, paired, *better)


def _scored(folder: Path) -> dict[str, dict[str, str]]:
    """Scored rows by id."""
    try:
        rows = {row["id"]: row for row in read_predictions(folder) if row.get("score") is not None}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise MmdoraError(f"{folder.name}/{PREDICTIONS}: not the predictions of an evaluation ({error})") from None
    return rows
