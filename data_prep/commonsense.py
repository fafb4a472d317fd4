"""The commonsense tasks in the form of LLM-Adapters (Hu et al., 2023), in which the DoRA paper trains and scores LLaMA.

Files of that collection, `commonsense_170k.json` and `dataset/TASK/{train,test}.json`, are JSON lists of `{instruction,
input, output, answer}`: the output is "the correct answer is answer2", and the answer is "answer2". Rows of the
original datasets become the same: BoolQ, PIQA, SIQA, HellaSwag, WinoGrande, ARC and OpenBookQA, as their owners publish
them or as the hub's copies hold them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from mmdora.errors import MmdoraError
from mmdora.prepare.commonsense import question_of, worded
from mmdora.prepare.dataset import Dataset, OfficialFiles, Origin
from mmdora.prepare.inputs import Inputs
from mmdora.prepare.read import OfficialRow
from mmdora.prepare.record import RecordDraft, asked
from mmdora.prepare.rows import labelled_rows

ANSWER = "the correct answer is {}"
KINDS = {"true": "boolq", "false": "boolq", "solution": "piqa", "ending": "hellaswag", "option": "winogrande"}
"""A label without its number -> the dataset whose answers have this form."""
FOLDERS = {"social_i_qa": "siqa", "ARC-Easy": "arc-easy", "ARC-Challenge": "arc-challenge", "openbookqa": "openbookqa"}
"""Folder of the collection -> the dataset, of those whose answers have one form."""


def records(row: OfficialRow) -> Iterator[RecordDraft]:
    value = row.value
    if "instruction" in value:
        yield _collected(row)
        return
    question = question_of(value)
    text, label = worded(question)
    name = f"{question.kind}-{row.number if question.name is None else question.name}"
    output = None if label is None else ANSWER.format(label)
    yield asked(name, [], text, output, answer=label, type=question.kind)


def _collected(row: OfficialRow) -> RecordDraft:
    """A row of the collection. An input, which none of the published rows has, follows as Alpaca's prompt shows it."""
    value = row.value
    label = value["answer"]
    if not re.fullmatch(r"true|false|(solution|answer|ending|option)[1-5]", label):
        raise MmdoraError(f"the answer {label!r} is none of the collection's labels, such as answer2 or true")
    text = value["instruction"] + (f"\n\n### Input:\n{value['input']}" if value.get("input") else "")
    kind = KINDS.get(label.rstrip("12345")) or FOLDERS.get(row.file.parent.name, "answers")
    return asked(f"{kind}-{row.number}", [], text, value["output"], answer=label, type=kind)


DATASET = Dataset(
    name="commonsense",
    summary="The DoRA paper's commonsense tasks, worded for LLaMA; text",
    details=(
        "Give commonsense_170k.json, or TASK/train.json and TASK/test.json, of LLM-Adapters; or the files of BoolQ, "
        "PIQA, SIQA, HellaSwag, WinoGrande, ARC and OpenBookQA themselves (JSON Lines with their labels, or Parquet)."
    ),
    example="--in dataset/boolq/test.json --out data/commonsense-boolq",
    origin=Origin(
        licence="Apache-2.0 (the collection); of each dataset: its own",
        source=(
            "https://github.com/AGI-Edgerunners/LLM-Adapters dataset/*/test.json (form and wording), "
            "commonsense_evaluate.py (labels)"
        ),
        unverified=("HellaSwag's wording, which was seen in a published log and not in its file",),
    ),
    files=OfficialFiles(Inputs, labelled_rows, records, split="train"),
)
