"""BoolQ (Clark et al., 2019): yes/no questions about a passage, without pictures.

The files are JSON Lines of `{question, passage, answer: true|false, title}`; those of the test split have no answer.
SuperGLUE's copy has `idx`, and `label` instead of `answer`. The result file is SuperGLUE's: JSON Lines of
`{idx, label: "true"|"false"}`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from mmdora.errors import MmdoraError
from mmdora.prepare.dataset import Dataset, OfficialFiles, Origin, ResultFile
from mmdora.prepare.inputs import Inputs
from mmdora.prepare.read import OfficialRow
from mmdora.prepare.record import RecordDraft, asked
from mmdora.prepare.results import answered, write_jsonl
from mmdora.prepare.rows import labelled_rows
from mmdora.records.record import RecordFacts


def records(row: OfficialRow) -> Iterator[RecordDraft]:
    value = row.value
    answer = value.get("answer", value.get("label"))
    if answer is not None and not isinstance(answer, bool):
        raise MmdoraError(f"the answer {answer!r} is neither true nor false")
    number = value.get("idx", row.number)
    text = None if answer is None else "yes" if answer else "no"
    yield asked(number, [], f"{value['passage']}\n{value['question']}?", text, idx=number, title=value.get("title"))


def write_results(records: Iterable[RecordFacts], predictions: Mapping[str, str], path: Path) -> Path:
    """Write JSON Lines of `{idx, label}`: "true" for yes, and "false" for every other text."""
    rows = (
        {"idx": meta["idx"], "label": "true" if text.lower().startswith("yes") else "false"}
        for meta, text in answered(records, predictions)
    )
    return write_jsonl(path, rows)


DATASET = Dataset(
    name="boolq",
    summary="BoolQ: yes/no questions about a passage; text only",
    details="Give train.jsonl, dev.jsonl or test.jsonl.",
    example="--in dev.jsonl --out data/boolq",
    origin=Origin(
        licence="CC BY-SA 3.0",
        source="https://github.com/google-research-datasets/boolean-questions README.md",
        unverified=("SuperGLUE's copy (idx, label) and its result file",),
    ),
    files=OfficialFiles(Inputs, labelled_rows, records),
    results=ResultFile("results.jsonl", write_results),
)
