"""Social IQa (Sap et al., 2019): which of three answers fits a social situation? It has no pictures.

The files are JSON Lines of `{context, question, answerA, answerB, answerC}`, with a file of labels beside it
(`train.jsonl`, `train-labels.lst`, a line of 1, 2 or 3 for each question). The hub's copy has the label in the row, and
version 1.4's own files have `correct: "A"`.
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
    draft = choice(row.number, [], found.question, found.options, found.right, context=found.context)
    draft["meta"]["context"] = found.context
    yield draft


DATASET = Dataset(
    name="siqa",
    summary="Social IQa: which of three answers fits; text only",
    details="Give train.jsonl and train-labels.lst, or dev.jsonl and dev-labels.lst; or the hub's files.",
    example="--in dev.jsonl dev-labels.lst --out data/siqa",
    origin=Origin(
        licence="not stated",
        source="the hub's social_i_qa (fields); lm-evaluation-harness lm_eval/tasks/siqa",
        unverified=("the files of version 1.4 with `correct`",),
    ),
    files=OfficialFiles(Inputs, labelled_rows, records),
)
