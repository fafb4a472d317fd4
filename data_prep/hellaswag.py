"""HellaSwag (Zellers et al., 2019): which of four endings follows a text? It has no pictures.

The files are JSON Lines of `{ind, activity_label, ctx_a, ctx_b, ctx, endings: [four], label: index, split, split_type,
source_id}`. The test split has no labels; the hub's copy has empty labels there, and writes labels as text.
The result file is CSV, `annot_id,ending0,…,ending3`, of probabilities; the chosen ending gets 1.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from mmdora.prepare.dataset import Dataset, OfficialFiles, Origin, ResultFile
from mmdora.prepare.inputs import Inputs
from mmdora.prepare.read import OfficialRow
from mmdora.prepare.record import RecordDraft, choice
from mmdora.prepare.results import chosen_answers, write_csv
from mmdora.prepare.rows import labelled_rows
from mmdora.records.record import RecordFacts


def records(row: OfficialRow) -> Iterator[RecordDraft]:
    value = row.value
    label = value.get("label")
    name = f"{value['split']}-{row.number}"
    yield choice(
        name,
        [],
        "Which ending is the most plausible?",
        value["endings"],
        None if label in (None, "") else int(label),
        context=f"{value['activity_label']}: {value['ctx']}",
        annot_id=name,
        ind=value["ind"],
        source_id=value.get("source_id"),
        activity_label=value["activity_label"],
        ctx_a=value.get("ctx_a"),
        ctx_b=value.get("ctx_b"),
        type=value.get("split_type"),
    )


def write_results(records: Iterable[RecordFacts], predictions: Mapping[str, str], path: Path) -> Path:
    """Write `annot_id` and a probability for each ending: 1 for the chosen one; all are 0 for an unusable answer."""
    head = ("annot_id", *(f"ending{number}" for number in range(4)))
    rows = (
        (meta["annot_id"], *(float(index == number) for number in range(4)))
        for meta, index in chosen_answers(records, predictions)
    )
    return write_csv(path, (row for part in ([head], rows) for row in part))


DATASET = Dataset(
    name="hellaswag",
    summary="HellaSwag: which of four endings follows; text only",
    details="Give hellaswag_train.jsonl, hellaswag_val.jsonl or hellaswag_test.jsonl.",
    example="--in hellaswag_val.jsonl --out data/hellaswag",
    origin=Origin(
        licence="MIT",
        source=(
            "https://github.com/rowanz/hellaswag data/README.md; "
            "hellaswag_models/bertlarge-example-submission.csv (result)"
        ),
        unverified=(
            "the number in annot_id (test-0, test-1 …), taken to be that of the line",
            "the licence: no statement of its owners was at hand",
        ),
    ),
    files=OfficialFiles(Inputs, labelled_rows, records),
    results=ResultFile("results.csv", write_results),
)
