"""GQA (Hudson and Manning, 2019): compositional questions made from scene graphs.

A JSON object of question id -> `{imageId, question, answer, fullAnswer, isBalanced, groups: {global,
local}, types: {structural, semantic, detailed}, semantic, semanticStr, entailed, equivalent, annotations}`;
the submission split has `imageId`, `question` and `isBalanced` only. Images: `images/IMAGEID.jpg` or
`IMAGEID.jpg` below the root. `meta` keeps what consistency, distribution and types need, and, if
`val_choices.json` (question id -> `{valid, plausible}`) is among the files, what validity and
plausibility need. Result: `[{questionId, prediction}]`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from mmdora.prepare.inputs import ImageInputs
from mmdora.prepare.read import Reader, Row
from mmdora.prepare.record import asked
from mmdora.prepare.results import answered, write_json
from mmdora.prepare.run import run
from mmdora.records.record import Record

NAME = "gqa"
LICENCE = "CC BY 4.0"
SOURCE = "https://cs.stanford.edu/people/dorarad/gqa/download.html; LLaVA scripts/convert_gqa_for_eval.py (result)"
UNVERIFIED = (
    "the submission split's fields: only answered splits were seen",
    "the choices file's fields",
    "the licence: no statement of its owners was at hand",
)


def prepare(out: Path, *, inputs: ImageInputs) -> dict[str, int]:
    """GQA's question files, balanced or all.

    Example: `mmdora prep gqa --in testdev_balanced_questions.json --images gqa/images --out data/gqa`

    Parameters
    ----------
    out
        Folder for a file per split, dataset_card.json and report.html.
    """
    return run(out, __name__, inputs, rows, records)


def rows(read: Reader, files: list[Path]) -> Iterator[Row]:
    """(question id, question, choices or None)."""
    choices = [read.index(read.items(path), complete=False) for path in files if "choices" in path.name]
    for path in files:
        for row in read.items(path) if "choices" not in path.name else ():
            name, question = row.value
            found = [entry for index in choices for entry in index.all(name)]
            yield row._replace(value=(name, question, found[0] if found else None))


def records(row: Row) -> Iterator[Record]:
    name, question, choices = row.value
    image = f"{question['imageId']}.jpg"
    types = question.get("types") or {}
    yield asked(
        name,
        [(image, f"images/{image}")],
        question["question"],
        question.get("answer"),
        question_id=name,
        image_id=question["imageId"],
        type=types.get("structural"),
        types=types or None,
        groups=question.get("groups"),
        isBalanced=question.get("isBalanced"),
        fullAnswer=question.get("fullAnswer"),
        choices=choices,
        entailed=question.get("entailed"),
        equivalent=question.get("equivalent"),
    )


def write_results(records: Iterable[Record], predictions: Mapping[str, str], path: Path) -> Path:
    """`[{questionId, prediction}]`; answers in lower case without a full stop, as the official scorer compares them."""
    rows = (
        {"questionId": meta["question_id"], "prediction": text.rstrip(".").lower()}
        for meta, text in answered(records, predictions)
    )
    return write_json(path, rows)
