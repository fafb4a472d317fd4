"""ARC (Clark et al., 2018): school science in multiple choice, an easy set and a challenge set. It has no pictures.

The files are JSON Lines of `{id, question: {stem, choices: [{text, label}]}, answerKey}`; labels are letters, or digits
in some questions. The hub's copy has `{id, question, choices: {text: […], label: […]}, answerKey}`.
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
    yield choice(found.name, [], found.question, found.options, found.right)


DATASET = Dataset(
    name="arc",
    summary="ARC: school science in multiple choice; text only",
    details="Give ARC-Easy-Test.jsonl, ARC-Challenge-Test.jsonl and so on, each set into a folder of its own.",
    example="--in ARC-Easy-Test.jsonl --out data/arc-easy",
    origin=Origin(
        licence="CC BY-SA 4.0",
        source="https://huggingface.co/datasets/allenai/ai2_arc (fields)",
        unverified=("the licence: no statement of its owners was at hand",),
    ),
    files=OfficialFiles(Inputs, labelled_rows, records),
)
