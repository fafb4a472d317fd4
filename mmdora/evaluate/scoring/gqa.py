"""Scores GQA as its eval.py does (Hudson and Manning 2019, section 4.4).

All numbers are computed over the balanced questions; other questions only serve the consistency. The grounding score
is not computed, because it needs attention maps.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence

import numpy as np

from mmdora.evaluate.scoring.bootstrap import Array
from mmdora.evaluate.scoring.parts import Kinds, PartScores, mean, means
from mmdora.evaluate.scoring.rows import Prediction, need
from mmdora.evaluate.scoring.scores import Score

COMMON = ("color", "material", "shape")
"""The answers that eval.py counts as valid for a question about what two things have in common."""
SEMANTIC = {"attr": "attribute", "cat": "category", "global": "scene", "obj": "object", "rel": "relation"}


def submitted(text: str) -> str:
    """The text in lower case without periods at the end, as LLaVA's convert_gqa_for_eval.py hands it in."""
    return text.strip().rstrip(".").lower()


def right(row: Prediction) -> bool:
    return row["prediction"] == row["answer"]


def kinds(row: Prediction) -> Iterable[str]:
    """Whether the question is open or binary, its structural type and its semantic type, if `meta.types` is there."""
    types = row["meta"].get("types")
    if types:
        yield "open" if types["structural"] == "query" else "binary"
        yield f"structural: {types['structural']}"
        yield f"semantic: {SEMANTIC.get(types['semantic'], types['semantic'])}"


def sum_up(rows: Sequence[Prediction], each: Array, kinds: Kinds) -> PartScores:
    """Accuracy, and those other numbers of eval.py for which the rows have the fields.

    Validity and plausibility need `meta.types` and `meta.choices`, which is `{valid, plausible}` from the file of
    choices. Consistency needs `meta.entailed`, and predictions for the questions named there. The distribution score
    needs `meta.groups`; the lower it is, the better. Rows without `meta.isBalanced` count as balanced.
    """
    counted = np.array([bool(row["meta"].get("isBalanced", True)) for row in rows])
    chosen = [row for row, kept in zip(rows, counted, strict=True) if kept]
    parts = means(rows, each, kinds, counted)
    if all("choices" in row["meta"] for row in chosen):
        for name, key in (("validity", "valid"), ("plausibility", "plausible")):
            fits = [kept and _belongs(row, key) for row, kept in zip(rows, counted, strict=True)]
            parts.details[name] = mean(np.array(fits, float), counted)
    else:
        parts.left_out.update(dict.fromkeys(("validity", "plausibility"), "no meta.choices, from the choices file"))
    _add_consistency(parts, rows, each, counted)
    if all("groups" in row["meta"] for row in chosen):
        parts.plain["distribution"] = Score(distribution(chosen), len(chosen))
    else:
        parts.left_out["distribution"] = "no meta.groups"
    return parts


def distribution(rows: Iterable[Prediction]) -> float:
    """Chi-square of predicted against true answers in each global group, averaged by group size and divided by 100."""
    truth: defaultdict[str, Counter[str]] = defaultdict(Counter)
    predicted: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for row in rows:
        group = row["meta"]["groups"]["global"]
        if group is not None:
            truth[group][row["answer"]] += 1
            predicted[group][row["prediction"]] += 1
    chi = {
        group: sum((predicted[group][answer] - count) ** 2 / count for answer, count in counts.items())
        for group, counts in truth.items()
    }
    total = sum(counts.total() for counts in truth.values())
    return sum(chi[group] * counts.total() for group, counts in truth.items()) / max(total, 1) / 100


def _belongs(row: Prediction, key: str) -> bool:
    common = "Common" in need(row, "types")["detailed"]
    return row["prediction"] in (COMMON if common else row["meta"]["choices"][key])


def _add_consistency(parts: PartScores, rows: Sequence[Prediction], each: Array, counted: Array) -> None:
    """Add the consistency: the mean accuracy on the questions that a correctly answered question entails."""
    scores = {_question(row): score for row, score in zip(rows, each, strict=True)}
    entailed = [_entailed(row) if kept else [] for row, kept in zip(rows, counted, strict=True)]
    missing = {name for names in entailed for name in names} - scores.keys()
    if missing or not any(entailed):
        reason = f"{len(missing):,} entailed questions have no prediction" if missing else "no meta.entailed"
        parts.left_out["consistency"] = reason
        return
    shares = np.array([np.mean([scores[name] for name in names]) if names else 0.0 for names in entailed])
    asked = np.array([bool(names) for names in entailed]) & (each == 1)
    parts.details["consistency"] = mean(shares, asked)


def _question(row: Prediction) -> str:
    return str(row["meta"].get("question_id", row["id"]))


def _entailed(row: Prediction) -> list[str]:
    return [str(name) for name in row["meta"].get("entailed", ()) if str(name) != _question(row)]
