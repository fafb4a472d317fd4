"""The kinds of questions of ScienceQA (Lu et al. 2022), as in its evaluate_acc.py; `image` is LLaVA's IMG-Accuracy."""

from __future__ import annotations

from collections.abc import Iterable

from mmdora.evaluate.scoring.rows import Prediction, need


def kinds(row: Prediction) -> Iterable[str]:
    yield need(row, "subject")
    yield "grade 1-6" if int(need(row, "grade").removeprefix("grade")) <= 6 else "grade 7-12"
    hint = row["meta"].get("hint")
    if hint:
        yield "text"
    if row["images"]:
        yield "image"
    if not hint and not row["images"]:
        yield "no context"
