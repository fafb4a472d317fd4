"""Scores for short answers: accuracy by answer type, a question-only baseline, a paired test. No torch.

Answers are compared after `normalize`; proportions carry Wilson's 95% interval (Wilson 1927).
"""

from __future__ import annotations

import itertools
import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mmdora.data.prompt import answer_text, prompt_messages
from mmdora.errors import MmdoraError

YES_NO, OTHER = "yes/no", "other"
Z95 = 1.959963984540054  # standard normal quantile of 0.975


def normalize(text: str) -> str:
    """Lower case, inner white space made single, no white space or `.!?,` at the end.

    Articles and inner punctuation stay: answers that differ there are different answers.
    """
    return " ".join(text.lower().split()).rstrip(" .!?,")


def exact_match(prediction: str, answer: str) -> bool:
    return normalize(prediction) == normalize(answer)


def question_text(record: Mapping[str, Any]) -> str:
    """The text of the turn that the last answer replies to."""
    return _text(prompt_messages(dict(record))[-1])


def turns(record: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Every question of a record with its answer."""
    for asked, reply in itertools.pairwise(record["messages"]):
        if (asked["role"], reply["role"]) == ("user", "assistant"):
            yield _text(asked), _text(reply)


def _text(message: Mapping[str, Any]) -> str:
    return "".join(part["text"] for part in message["content"] if part["type"] == "text").strip()


def answer_type(record: Mapping[str, Any]) -> str:
    """`meta.type` where the data names it, else yes/no or other by the reference answer."""
    named = (record.get("meta") or {}).get("type")
    return named or (YES_NO if normalize(answer_text(dict(record))) in ("yes", "no") else OTHER)


@dataclass(frozen=True)
class Score:
    """A proportion of right answers."""

    correct: int
    n: int

    @property
    def accuracy(self) -> float:
        return self.correct / self.n

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's 95% interval of the accuracy."""
        p, n, z = self.accuracy, self.n, Z95
        centre = (p + z * z / (2 * n)) / (1 + z * z / n)
        half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
        return max(0.0, centre - half), min(1.0, centre + half)

    def to_dict(self) -> dict[str, Any]:
        return {"accuracy": self.accuracy, "correct": self.correct, "n": self.n, "interval95": list(self.interval)}

    def __str__(self) -> str:
        low, high = self.interval
        return f"{self.accuracy:.1%} [{low:.1%}, {high:.1%}] of {self.n:,}"


@dataclass(frozen=True)
class Scores:
    """Overall and by answer type; types in alphabetical order reversed, so yes/no comes before other."""

    overall: Score
    by_type: dict[str, Score]

    @property
    def n(self) -> int:
        return self.overall.n

    def to_dict(self) -> dict[str, Any]:
        return {"overall": self.overall.to_dict(), "by_type": {k: s.to_dict() for k, s in self.by_type.items()}}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Scores:
        """The scores that `to_dict` (and so metrics.json) holds."""
        parts = {"": values["overall"], **values["by_type"]}
        read = {kind: Score(part["correct"], part["n"]) for kind, part in parts.items()}
        return cls(read.pop(""), read)

    def __str__(self) -> str:
        return "; ".join(f"{name} {part}" for name, part in [("all", self.overall), *self.by_type.items()])


def score(predictions: Sequence[str], records: Iterable[Mapping[str, Any]]) -> Scores:
    """Exact match of each prediction with the last answer of its record.

    Raises:
        MmdoraError: if there are no records, or not one prediction for each.
    """
    rows = list(records)
    if not rows or len(predictions) != len(rows):
        raise MmdoraError(f"scores need one prediction for each record; found {len(predictions)} for {len(rows)}")
    pairs = zip(predictions, rows, strict=True)
    return tally((answer_type(row), exact_match(text, answer_text(dict(row)))) for text, row in pairs)


def tally(marks: Iterable[tuple[str, bool]]) -> Scores:
    """Scores from (answer type, right or wrong) of every record."""
    right: Counter[str] = Counter()
    asked: Counter[str] = Counter()
    for kind, correct in marks:
        right[kind] += correct
        asked[kind] += 1
    kinds = sorted(asked, reverse=True)
    return Scores(Score(right.total(), asked.total()), {kind: Score(right[kind], asked[kind]) for kind in kinds})


def majority_baseline(train: Iterable[Mapping[str, Any]], test: Iterable[Mapping[str, Any]]) -> Scores:
    """What knowing the questions alone is worth: each question gets its most frequent training answer.

    Every turn of a training record counts; of a test record the last is asked. A question not seen
    in training gets the most frequent answer of all. Of equally frequent answers the one that comes
    first in the training records is taken.
    """
    by_question: defaultdict[str, Counter[str]] = defaultdict(Counter)
    overall: Counter[str] = Counter()
    for question, answer in (turn for record in train for turn in turns(record)):
        by_question[normalize(question)][normalize(answer)] += 1
        overall[normalize(answer)] += 1
    if not overall:
        raise MmdoraError("the majority baseline needs training records; found none")
    rows = list(test)
    counts = (by_question.get(normalize(question_text(row)), overall) for row in rows)
    return score([count.most_common(1)[0][0] for count in counts], rows)


@dataclass(frozen=True)
class Paired:
    """Two models on the same questions: those only one of them got right, and McNemar's p."""

    only_first: int
    only_second: int
    p: float


def mcnemar(first: Sequence[bool], second: Sequence[bool]) -> Paired:
    """McNemar's exact two-sided test (McNemar 1947) on right/wrong of two models, question by question."""
    pairs = list(zip(first, second, strict=True))
    only_first = sum(a and not b for a, b in pairs)
    only_second = sum(b and not a for a, b in pairs)
    n = only_first + only_second
    term, tail = 1, 1  # exact integers: sum of C(n, i) for i up to the smaller count
    for i in range(min(only_first, only_second)):
        term = term * (n - i) // (i + 1)
        tail += term
    return Paired(only_first, only_second, min(1.0, 2 * tail / 2**n))
