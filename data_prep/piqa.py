"""PIQA (Bisk et al., 2020): which of two solutions reaches a goal? It has no pictures.

The files are JSON Lines of `{goal, sol1, sol2}`, with a file of labels beside it (`train.jsonl`, `train-labels.lst`, a
line of 0 or 1 for each question). The hub's copy has the label in the row; that of a test row is -1.
"""

from __future__ import annotations

from collections.abc import Iterator

from mmdora.prepare.commonsense import question_of
from mmdora.prepare.dataset import Dataset, OfficialFiles, Origin
from mmdora.prepare.inputs import Inputs
from mmdora.prepare.read import OfficialRow
from mmdora.prepare.record import RecordDraft, choice
from mmdora.prepare.rows import labelled_rows


def records(row: OfficialRow) -> Iterator[RecordDraft]:
    found = question_of(row.value)
    name = row.number if found.name is None else found.name
    yield choice(name, [], found.question, found.options, found.right)


DATASET = Dataset(
    name="piqa",
    summary="PIQA: which of two solutions reaches a goal; text only",
    details="Give train.jsonl and train-labels.lst, or valid.jsonl and valid-labels.lst; or the hub's files.",
    example="--in valid.jsonl valid-labels.lst --out data/piqa",
    origin=Origin(
        licence="not stated",
        source="lm-evaluation-harness lm_eval/tasks/piqa.py (files, fields)",
    ),
    files=OfficialFiles(Inputs, labelled_rows, records),
)
