"""HellaSwag (Zellers et al., 2019): which ending follows? four choices; text only.

JSON Lines: `{ind, activity_label, ctx_a, ctx_b, ctx, endings: [four], label: index, split, split_type,
source_id}`; test has no label (the hub's copy an empty one, and labels as text). Result: CSV
`annot_id,ending0,…,ending3` of probabilities, here 1 for the chosen ending.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from mmdora.prepare.inputs import Inputs
from mmdora.prepare.read import Reader, Row
from mmdora.prepare.record import choice
from mmdora.prepare.results import chosen_answers, write_csv
from mmdora.prepare.run import run
from mmdora.records.record import Record

NAME = "hellaswag"
LICENCE = "MIT"
SOURCE = (
    "https://github.com/rowanz/hellaswag data/README.md; hellaswag_models/bertlarge-example-submission.csv (result)"
)
UNVERIFIED = (
    "the number in annot_id (test-0, test-1 …), taken to be that of the line",
    "the licence: no statement of its owners was at hand",
)


def prepare(out: Path, *, inputs: Inputs) -> dict[str, int]:
    """HellaSwag: hellaswag_train.jsonl, hellaswag_val.jsonl, hellaswag_test.jsonl.

    Example: `mmdora prep hellaswag --in hellaswag_val.jsonl --out data/hellaswag`

    Parameters
    ----------
    out
        Folder for a file per split, dataset_card.json and report.html.
    """
    return run(out, __name__, inputs, rows, records)


def rows(read: Reader, files: list[Path]) -> Iterator[Row]:
    for path in files:
        yield from read.lines(path)


def records(row: Row) -> Iterator[Record]:
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
        type=value.get("split_type"),
    )


def write_results(records: Iterable[Record], predictions: Mapping[str, str], path: Path) -> Path:
    """CSV of `annot_id` and a probability for each ending: 1 for the chosen one, all 0 for an unusable answer."""
    head = ("annot_id", *(f"ending{number}" for number in range(4)))
    rows = (
        (meta["annot_id"], *(float(index == number) for number in range(4)))
        for meta, index in chosen_answers(records, predictions)
    )
    return write_csv(path, (row for part in ([head], rows) for row in part))
