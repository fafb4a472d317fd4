"""WinoGrande (Sakaguchi et al., 2020): which of two names fills the blank in a sentence? It has no pictures.

The files are JSON Lines of `{qID, sentence with "_", option1, option2, answer: "1"|"2"}`. Those of the test split have
no answer; the hub's copy has an empty one, and no qID. Training files of several sizes (train_xs … train_xl) need a
`--split` each, which tells them apart. The result file, `predictions.lst`, has a line of `1` or `2` for each question;
the leaderboard wants five such columns, one for each training size.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from mmdora.errors import MmdoraError
from mmdora.prepare.dataset import Dataset, OfficialFiles, Origin, ResultFile
from mmdora.prepare.inputs import Inputs
from mmdora.prepare.read import OfficialRow
from mmdora.prepare.record import RecordDraft, choice
from mmdora.prepare.results import chosen_answers, write_csv
from mmdora.prepare.rows import labelled_rows
from mmdora.records.record import RecordFacts


def records(row: OfficialRow) -> Iterator[RecordDraft]:
    value = row.value
    if value["sentence"].count("_") != 1:
        raise MmdoraError("the sentence needs one blank, written _")
    answer = value.get("answer")
    if answer and answer not in ("1", "2"):
        raise MmdoraError(f"the answer {answer!r} is neither 1 nor 2")
    yield choice(
        value.get("qID", row.number),
        [],
        "Which of the two fills the blank?",
        [value["option1"], value["option2"]],
        int(answer) - 1 if answer else None,
        context=value["sentence"],
        sentence=value["sentence"],
        qID=value.get("qID"),
    )


def write_results(records: Iterable[RecordFacts], predictions: Mapping[str, str], path: Path) -> Path:
    """Write a line of 1 or 2 for each record, in their order; an unusable answer gets 0."""
    return write_csv(path, ([index + 1] for _, index in chosen_answers(records, predictions)))


DATASET = Dataset(
    name="winogrande",
    summary="WinoGrande: which of two names fills the blank; text only",
    details="Give train_xl.jsonl, dev.jsonl or test.jsonl of version 1.1.",
    example="--in dev.jsonl --out data/winogrande",
    origin=Origin(
        licence="CC BY (data)",
        source="https://github.com/allenai/winogrande README.md (files, result), scripts/utils.py (fields)",
    ),
    files=OfficialFiles(Inputs, labelled_rows, records),
    results=ResultFile("predictions.lst", write_results),
)
