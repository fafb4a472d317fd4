"""GQA (Hudson and Manning, 2019): compositional questions made from scene graphs.

A file is a JSON object of question id -> `{imageId, question, answer, fullAnswer, isBalanced, groups: {global, local},
types: {structural, semantic, detailed}, semantic, semanticStr, entailed, equivalent, annotations}`; the submission
split has `imageId`, `question` and `isBalanced` only. Images are `images/IMAGEID.jpg` or `IMAGEID.jpg` below the
root. `meta` keeps what the scores of consistency, distribution and types need. If `val_choices.json` (question id ->
`{valid, plausible}`) is among the files, it also keeps what validity and plausibility need. The result file is
`[{questionId, prediction}]`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from mmdora.prepare.dataset import Dataset, OfficialFiles, Origin, ResultFile
from mmdora.prepare.inputs import ImageInputs
from mmdora.prepare.read import OfficialRow, Reader
from mmdora.prepare.record import RecordDraft, asked
from mmdora.prepare.results import answered, write_json_list
from mmdora.records.record import RecordFacts


def rows(reader: Reader, inputs: ImageInputs) -> Iterator[OfficialRow]:
    """Yield (question id, question, its entry in the file of choices or None)."""
    choices = [reader.index(reader.items(path), complete=False) for path in inputs.files if "choices" in path.name]
    for path in inputs.files:
        for row in reader.items(path) if "choices" not in path.name else ():
            name, question = row.value
            entries = [entry for index in choices for entry in index.all(name)]
            yield row._replace(value=(name, question, entries[0] if entries else None))


def records(row: OfficialRow) -> Iterator[RecordDraft]:
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


def write_results(records: Iterable[RecordFacts], predictions: Mapping[str, str], path: Path) -> Path:
    """Write `[{questionId, prediction}]`, in lower case without a full stop, as the official scorer compares them."""
    rows = (
        {"questionId": meta["question_id"], "prediction": text.rstrip(".").lower()}
        for meta, text in answered(records, predictions)
    )
    return write_json_list(path, rows)


DATASET = Dataset(
    name="gqa",
    summary="GQA: compositional questions made from scene graphs",
    details="Give question files, balanced or all.",
    example="--in testdev_balanced_questions.json --images gqa/images --out data/gqa",
    origin=Origin(
        licence="CC BY 4.0",
        source=(
            "https://cs.stanford.edu/people/dorarad/gqa/download.html; LLaVA scripts/convert_gqa_for_eval.py (result)"
        ),
        unverified=(
            "the submission split's fields: only answered splits were seen",
            "the choices file's fields",
            "the licence: no statement of its owners was at hand",
        ),
    ),
    files=OfficialFiles(ImageInputs, rows, records),
    results=ResultFile("results.json", write_results),
)
