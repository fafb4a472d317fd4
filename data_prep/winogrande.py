"""WinoGrande (Sakaguchi et al., 2020): which of two names fills the blank? text only.

JSON Lines: `{qID, sentence with "_", option1, option2, answer: "1"|"2"}`; test has no answer (the hub's copy an
empty one). Training files of several sizes (train_xs … train_xl) are told apart by `--split`. Result: a
line of `1` or `2` for each question (`predictions.lst`; the leaderboard wants five such columns, one
for each training size).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from mmdora.errors import MmdoraError
from mmdora.prepare.inputs import Inputs
from mmdora.prepare.read import Reader, Row
from mmdora.prepare.record import choice
from mmdora.prepare.results import chosen_answers, write_csv
from mmdora.prepare.run import run
from mmdora.records.record import Record

NAME = "winogrande"
LICENCE = "CC BY (data)"
SOURCE = "https://github.com/allenai/winogrande README.md (files, result), scripts/utils.py (fields)"
UNVERIFIED = ()


def prepare(out: Path, *, inputs: Inputs) -> dict[str, int]:
    """WinoGrande 1.1: train_xl.jsonl, dev.jsonl, test.jsonl.

    Example: `mmdora prep winogrande --in dev.jsonl --out data/winogrande`

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
    if value["sentence"].count("_") != 1:
        raise MmdoraError("the sentence needs one blank, written _")
    answer = value.get("answer")
    if answer and answer not in ("1", "2"):
        raise MmdoraError(f"the answer {answer!r} is neither 1 nor 2")
    yield choice(
        value["qID"],
        [],
        "Which of the two fills the blank?",
        [value["option1"], value["option2"]],
        int(answer) - 1 if answer else None,
        context=value["sentence"],
        qID=value["qID"],
    )


def write_results(records: Iterable[Record], predictions: Mapping[str, str], path: Path) -> Path:
    """A line of 1 or 2 for each record, in their order; 0 for an unusable answer."""
    return write_csv(path, ([index + 1] for _, index in chosen_answers(records, predictions)))
