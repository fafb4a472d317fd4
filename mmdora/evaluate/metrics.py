"""Scores of records with short answers: accuracy by answer type, and a question-only baseline. No torch.

Answers are compared after `exact.normalize`. The public datasets' own scorers are in `scoring`.
"""

from __future__ import annotations

import itertools
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from mmdora.data.turns import answer_text, prompt_messages
from mmdora.errors import MmdoraError
from mmdora.evaluate.exact import OTHER, YES_NO, exact_match, normalize
from mmdora.evaluate.scores import Score, Scores


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
    """Scores from (answer type, right or wrong) of every record; yes/no before other, Wilson's intervals."""
    right: Counter[str] = Counter()
    asked: Counter[str] = Counter()
    for kind, correct in marks:
        right[kind] += correct
        asked[kind] += 1
    kinds = sorted(asked, reverse=True)
    by_type = {kind: Score.proportion(right[kind], asked[kind]) for kind in kinds}
    return Scores(Score.proportion(right.total(), asked.total()), by_type)


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
