"""BoolQ (Clark et al., 2019): yes/no questions about a passage; text only.

JSON Lines: `{question, passage, answer: true|false, title}`; test has no answer. SuperGLUE's copy has `idx` and
`label` instead of `answer`. Result: JSON Lines `{idx, label: "true"|"false"}` (SuperGLUE's).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from mmdora.errors import MmdoraError
from mmdora.prepare.inputs import Inputs
from mmdora.prepare.read import Reader, Row
from mmdora.prepare.record import asked
from mmdora.prepare.results import answered, write_jsonl
from mmdora.prepare.run import run
from mmdora.records.record import Record

NAME = "boolq"
LICENCE = "CC BY-SA 3.0"
SOURCE = "https://github.com/google-research-datasets/boolean-questions README.md"
UNVERIFIED = ("SuperGLUE's copy (idx, label) and its result file",)


def prepare(out: Path, *, inputs: Inputs) -> dict[str, int]:
    """BoolQ: train.jsonl, dev.jsonl, test.jsonl.

    Example: `mmdora prep boolq --in dev.jsonl --out data/boolq`

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
    answer = value.get("answer", value.get("label"))
    if answer is not None and not isinstance(answer, bool):
        raise MmdoraError(f"the answer {answer!r} is neither true nor false")
    number = value.get("idx", row.number)
    text = None if answer is None else "yes" if answer else "no"
    yield asked(number, [], f"{value['passage']}\n{value['question']}?", text, idx=number, title=value.get("title"))


def write_results(records: Iterable[Record], predictions: Mapping[str, str], path: Path) -> Path:
    """JSON Lines of `{idx, label}`; "true" for yes, and "false" for every other text."""
    rows = (
        {"idx": meta["idx"], "label": "true" if text.lower().startswith("yes") else "false"}
        for meta, text in answered(records, predictions)
    )
    return write_jsonl(path, rows)
