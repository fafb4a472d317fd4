"""The scores in the card of an export: the numbers of `mmdora eval`, with their intervals, or what a caller gives."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from mmdora.errors import MmdoraError
from mmdora.evaluate.resume import METRICS
from mmdora.evaluate.scoring.scorers import CIDER
from mmdora.files import checksum_holds, read_json

KEYS = {"score", "n", "interval95"}


def read_scores(paths: Iterable[Path]) -> dict[str, dict[str, Any]]:
    """Task -> {"metric", "score", "n", "interval95"}, from results of `mmdora eval`.

    Args:
        paths: files `metrics.json`, or the folders that hold one.

    Raises:
        MmdoraError: a file is missing, is no result, was changed, has no scores, or two are of the same task.
    """
    found: dict[str, dict[str, Any]] = {}
    for given in paths:
        path = given / METRICS if given.is_dir() else given
        values = read_json(path, "evaluation's file")
        task, metric, overall = values.get("task"), values.get("metric"), values.get("overall")
        if not isinstance(task, str) or not checksum_holds(values):
            raise MmdoraError(f"{path}: is no {METRICS} of `mmdora eval`, or was changed since; evaluate again")
        if not isinstance(overall, dict) or not overall.keys() >= KEYS:
            raise MmdoraError(f"{path}: has no scores, because only an official server can score {task}; leave it out")
        if task in found:
            raise MmdoraError(f"{path}: a second result of {task}; give the one of this model")
        found[task] = {"metric": metric, **{key: overall[key] for key in sorted(KEYS)}}
    return found


def shown(score: Any) -> str:
    """A score as text for people: a share in percent; of an evaluation also metric, interval and number of questions.

    CIDEr is multiplied by 100, as in papers.
    """
    if not isinstance(score, Mapping):
        return f"{score:.1%}" if isinstance(score, float) and 0 <= score <= 1 else str(score)
    sign = "" if score["metric"] == CIDER else "%"
    told = f"{score['metric']} {100 * score['score']:.1f}{sign}"
    if score["interval95"] is not None:
        low, high = (f"{100 * bound:.1f}{sign}" for bound in score["interval95"])
        told += f" (95% interval {low} to {high})"
    return f"{told}, {score['n']:,} questions"
