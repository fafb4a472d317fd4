"""OpenBookQA (Mihaylov et al., 2018): elementary science in multiple choice, asked without its book. No pictures.

The files are JSON Lines of `{id, question: {stem, choices: [{text, label}]}, answerKey}`. The hub's copy has `{id,
question_stem, choices: {text: […], label: […]}, answerKey}`.
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
    name="openbookqa",
    summary="OpenBookQA: elementary science; text only",
    details="Give train.jsonl, dev.jsonl or test.jsonl of its Main folder, or the hub's files.",
    example="--in test.jsonl --out data/openbookqa",
    origin=Origin(
        licence="not stated",
        source="https://huggingface.co/datasets/allenai/openbookqa (fields)",
    ),
    files=OfficialFiles(Inputs, labelled_rows, records),
)
