"""How the predictions of each task are submitted, scored and summed up; `score_rows(task, rows)` does all of it.

Every scorer follows a published one, which its module names. Nothing here imports torch.

| task | its number | fields of `meta` that it needs |
|---|---|---|
| exact | exact match after `exact.normalize`; kinds by the row's `type` | |
| vqav2, okvqa, textvqa | soft accuracy | answers (ten strings) |
| vizwiz | soft accuracy | answers; answerable (0 or 1) |
| gqa | exact match | see `gqa.sum_up` |
| nlvr2 | accuracy | identifier |
| scienceqa | accuracy | choices, subject, grade, hint |
| pope | mean of the splits' F1 | type: the split |
| mmbench | CircularEval accuracy | choices, index |
| mmbench-plain | accuracy | choices, index |
| boxes | share of boxes with an IoU of at least 0.5 | boxes_in: what the numbers are |
| choice | accuracy | choices |
| likelihood | accuracy of the most likely option | choices; without them the options are no and yes |
| likelihood-per-character | accuracy of the option that is most likely per character | as likelihood |
| commonsense | accuracy of the first label in the text | answer: the label |
| caption | CIDEr | references |

The kinds of questions come from `meta.type`, unless the scorer has its own `kinds`.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from mmdora.errors import MmdoraError
from mmdora.evaluate.scoring import (
    boxes,
    choice,
    commonsense,
    gqa,
    likelihood,
    mmbench,
    nlvr2,
    pope,
    scienceqa,
    vizwiz,
    vqa,
)
from mmdora.evaluate.scoring.bootstrap import Array, measure
from mmdora.evaluate.scoring.caption import cider, needs
from mmdora.evaluate.scoring.exact import exact_match
from mmdora.evaluate.scoring.parts import Kinds, PartScores, means, meta_kinds, picture
from mmdora.evaluate.scoring.rows import Prediction, need
from mmdora.evaluate.scoring.scores import Scores

EMPTY = {"images": (), "meta": {}}
"""Fields that a row may leave out."""
CIDER = "CIDEr"
"""The one metric that is not a percentage; tables print 100 times it, as papers do."""


@dataclass(frozen=True)
class Scorer:
    """How a task is scored.

    Attributes:
        metric: name of the task's number.
        score: function from rows, whose predictions are as submitted, to the score of each.
        submit: function from a row to the text that is scored and sent to the task's server.
        kinds: function from a row to the kinds of questions under which it is counted.
        sum_up: function from rows, their scores and `kinds` to the numbers of the task.
        unit: function from a row to its unit; the rows of a unit are resampled together.
        ready: function that raises if the scorer cannot run here.
    """

    metric: str
    score: Callable[[Sequence[Prediction]], Iterable[float]]
    submit: Callable[[Prediction], str] = lambda row: row["prediction"].strip()
    kinds: Kinds = meta_kinds
    sum_up: Callable[[Sequence[Prediction], Array, Kinds], PartScores] = means
    unit: Callable[[Prediction], Hashable] = picture
    ready: Callable[[], None] = lambda: None


def _each(score: Callable[[Prediction], float]) -> Callable[[Sequence[Prediction]], Iterable[float]]:
    return lambda rows: map(score, rows)


def _soft(score: Callable[[str, Sequence[str]], float]) -> Callable[[Sequence[Prediction]], Iterable[float]]:
    return _each(lambda row: score(row["prediction"], need(row, "answers")))


def _captions(rows: Sequence[Prediction]) -> Iterable[float]:
    return cider([row["prediction"] for row in rows], [need(row, "references") for row in rows])


def _text(change: Callable[[str], str]) -> Callable[[Prediction], str]:
    return lambda row: change(row["prediction"])


SCORERS: Mapping[str, Scorer] = {
    "exact": Scorer(
        "exact match",
        _each(lambda row: exact_match(row["prediction"], row["answer"])),
        kinds=lambda row: [row["type"]] if row.get("type") else [],
    ),
    "vqav2": Scorer("soft accuracy", _soft(vqa.vqa_accuracy), _text(vqa.evalai)),
    "okvqa": Scorer("soft accuracy", _soft(vqa.vqa_accuracy), _text(vqa.evalai)),
    "textvqa": Scorer("soft accuracy", _soft(vqa.textvqa_accuracy)),
    "vizwiz": Scorer("soft accuracy", _soft(vqa.vizwiz_accuracy), _text(vqa.evalai), sum_up=vizwiz.sum_up),
    "gqa": Scorer("exact match", _each(gqa.right), _text(gqa.submitted), gqa.kinds, gqa.sum_up),
    "nlvr2": Scorer(
        "accuracy", _each(nlvr2.right), _text(nlvr2.submitted), sum_up=nlvr2.sum_up, unit=nlvr2.picture_set
    ),
    "scienceqa": Scorer("accuracy", _each(choice.right), choice.letter, scienceqa.kinds, choice.sum_up),
    "pope": Scorer("mean F1", _each(pope.right), sum_up=pope.sum_up),
    "mmbench": Scorer("CircularEval accuracy", _each(mmbench.right), sum_up=mmbench.circular, unit=mmbench.question),
    "mmbench-plain": Scorer("accuracy", _each(mmbench.right), sum_up=mmbench.plain, unit=mmbench.question),
    "boxes": Scorer("accuracy at IoU 0.5", _each(boxes.right), sum_up=boxes.sum_up),
    "choice": Scorer("accuracy", _each(choice.right), choice.letter, sum_up=choice.sum_up),
    "likelihood": Scorer("accuracy by likelihood", _each(likelihood.right), likelihood.by_sum),
    "likelihood-per-character": Scorer(
        "accuracy by likelihood per character", _each(likelihood.right), likelihood.by_character
    ),
    "commonsense": Scorer(
        "accuracy of the first label", _each(commonsense.right), commonsense.label, sum_up=commonsense.sum_up
    ),
    "caption": Scorer(CIDER, _captions, ready=needs),
}


def scorer_of(task: str) -> Scorer:
    """The scorer of a task.

    Raises:
        MmdoraError: if there is no such task; the message suggests the nearest name.
    """
    if task not in SCORERS:
        near = difflib.get_close_matches(task, SCORERS, 1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise MmdoraError(f"no task {task!r}{hint} (there are {', '.join(SCORERS)})")
    return SCORERS[task]


def ready(task: str) -> None:
    """Raise now the errors that scoring would raise after hours of generation, such as a missing program."""
    scorer_of(task).ready()


def submitted(task: str, row: Prediction) -> str:
    """The prediction of a row as it is scored, and as it is written to the file for the task's server."""
    return scorer_of(task).submit(EMPTY | dict(row))


def sum_up(task: str, rows: Sequence[Prediction]) -> tuple[Array, PartScores, list[Hashable]]:
    """The score of every row [rows], the task's numbers before measuring, and the unit of every row.

    Raises:
        MmdoraError: if the task is unknown, there are no rows, or a row lacks a field by which the task is scored.
    """
    scorer = scorer_of(task)
    if not rows:
        raise MmdoraError(f"task {task}: there are no rows to score")
    given = [EMPTY | dict(row) for row in rows]
    given = [row | {"prediction": scorer.submit(row)} for row in given]
    each = np.fromiter(scorer.score(given), float, len(given))
    return each, scorer.sum_up(given, each, scorer.kinds), [scorer.unit(row) for row in given]


def score_rows(task: str, rows: Sequence[Prediction], *, seed: int = 0) -> Scores:
    """Score predictions as the task's published scorer does.

    Args:
        rows: rows as the module `rows` describes; `prediction` is the text as it was generated.
        seed: seed of the bootstrap, whose percentiles 2.5 and 97.5 are the intervals.

    Raises:
        MmdoraError: in the cases of `sum_up`.
    """
    each, parts, units = sum_up(task, rows)
    groups = {"overall": {"": parts.overall}, "by_type": parts.by_type, "details": parts.details}
    asked = {(group, name): part for group, own in groups.items() for name, part in own.items()}
    measured = measure(asked, units, seed)
    if ("overall", "") not in measured:
        raise MmdoraError(f"task {task}: none of the {len(rows)} rows counts")
    by_type, details = (
        {name: measured[group, name] for name in groups[group] if (group, name) in measured}
        for group in ("by_type", "details")
    )
    unknown = dict.fromkeys((name for _, name in asked.keys() - measured.keys()), "these rows do not determine it")
    return Scores(
        measured["overall", ""],
        by_type,
        details | parts.plain,
        parts.counts,
        parts.left_out | unknown,
        scorer_of(task).metric,
        tuple(each.tolist()),
    )
