"""The questions and answers of records (or rows), and the score of a model that knows the questions alone.

This module imports no torch.
"""

from __future__ import annotations

import itertools
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from mmdora.errors import MmdoraError
from mmdora.evaluate.scoring.exact import OTHER, YES_NO, normalize
from mmdora.evaluate.scoring.rows import Prediction
from mmdora.evaluate.scoring.scorers import score_rows
from mmdora.evaluate.scoring.scores import Scores
from mmdora.records.turns import answer_text, prompt_messages


def question_text(record: Mapping[str, Any]) -> str:
    """The text of the turn that the last answer replies to."""
    return _text(prompt_messages(record)[-1])


def turns(record: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield every question of a record with its answer."""
    for asked, reply in itertools.pairwise(record["messages"]):
        if (asked["role"], reply["role"]) == ("user", "assistant"):
            yield _text(asked), _text(reply)


def _text(message: Mapping[str, Any]) -> str:
    return "".join(part["text"] for part in message["content"] if part["type"] == "text").strip()


def answer_type(record: Mapping[str, Any]) -> str:
    """The kind of a record's answer: `meta.type` if there is one, else "yes/no" or "other" by the reference answer."""
    named = (record.get("meta") or {}).get("type")
    return named or (YES_NO if normalize(answer_text(record)) in ("yes", "no") else OTHER)


def majority_baseline(train: Iterable[Mapping[str, Any]], test: Iterable[Mapping[str, Any]]) -> Scores:
    """The score of a model that knows the questions alone and gives each its most frequent training answer.

    Every turn of a training record counts; of a test record only the last turn is asked. A question that does not occur
    in training gets the most frequent answer of all. Among equally frequent answers, the first in the training records
    is taken. Answers are scored by exact match, as in the task `exact`.

    Raises:
        MmdoraError: if there are no training records.
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
    return score_rows(
        "exact", [_answered(row, count.most_common(1)[0][0]) for row, count in zip(rows, counts, strict=True)]
    )


def _answered(record: Mapping[str, Any], text: str) -> Prediction:
    answer = answer_text(record)
    return {**record, "answer": answer, "prediction": text, "type": answer_type(record)}
