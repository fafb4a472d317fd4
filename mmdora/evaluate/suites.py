"""The suites: the columns of the DoRA paper's tables in their order, and their average. This module imports no torch.

The tables are 1 (LLaMA, commonsense), 5 (LLaVA-1.5-7B), 2 (VL-BART, image-text) and 3 (VL-BART, video-text) of arXiv
2402.09353. LLaMA answers by beam search, as in LLM-Adapters' commonsense_evaluate.py. The splits of
the columns are those of LLaVA's docs/Evaluation.md and of VL-Adapter (arXiv 2112.06825). The average is the plain mean
of the columns in percent, where CIDEr is multiplied by 100.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mmdora.errors import MmdoraError
from mmdora.evaluate.scoring.scores import Score, Scores
from mmdora.evaluate.tasks import COMMONSENSE_TASKS

if TYPE_CHECKING:
    from rich.table import Table

LOCAL, SERVER, ENTERED = "local", "server", "entered"


@dataclass(frozen=True)
class Column:
    """A column: its heading in the paper, its task (also the name of its data folder), and the number that it shows."""

    heading: str
    task: str
    kind: str | None = None  # key in `Scores.by_type` or `Scores.details`; None shows the task's overall number

    def number(self, scores: Scores) -> Score:
        """The score that the paper prints in this column.

        Raises:
            MmdoraError: if the records have no questions of that kind.
        """
        if self.kind is None:
            return scores.overall
        score = scores.by_type.get(self.kind) or scores.details.get(self.kind)
        if score is None:
            raise MmdoraError(f"column {self.heading}: none of the questions is of the kind {self.kind!r}")
        return score


@dataclass(frozen=True)
class Suite:
    """The columns of a table; `beams` and `max_new_tokens` are those of its authors."""

    name: str
    columns: tuple[Column, ...]
    beams: int = 1
    max_new_tokens: int | None = None

    def column(self, task: str) -> Column:
        """The column of a task.

        Raises:
            MmdoraError: if there is none; the message suggests the nearest name.
        """
        known = {column.task: column for column in self.columns}
        if task not in known:
            near = difflib.get_close_matches(task, known, 1)
            raise MmdoraError(
                f"suite {self.name}: no column {task!r}; {f'did you mean {near[0]!r}?' if near else ''} "
                f"it has {', '.join(known)}"
            )
        return known[task]


_SUITES = (
    Suite(
        "paper-llava",
        (
            Column("VQAv2", "vqav2"),
            Column("GQA", "gqa"),
            Column("VisWiz", "vizwiz"),  # The paper spells it so.
            Column("SQA", "scienceqa", "image"),  # This is LLaVA's SQA^I, which has only questions with an image.
            Column("VQA^T", "textvqa"),
            Column("POPE", "pope"),
            Column("MMBench", "mmbench"),
        ),
    ),
    Suite(
        "paper-vlbart-image",
        (
            Column("VQAv2", "vqav2"),
            Column("GQA", "gqa"),
            Column("NLVR2", "nlvr2"),
            Column("COCO Cap", "coco-captions"),
        ),
        beams=5,
        max_new_tokens=36,
    ),
    Suite(
        "paper-vlbart-video",
        (Column("TVQA", "tvqa"), Column("How2QA", "how2qa"), Column("TVC", "tvc"), Column("YC2C", "yc2c")),
        beams=5,
        max_new_tokens=36,
    ),
    Suite(
        "paper-commonsense",
        tuple(Column(heading, f"commonsense-{name}") for name, heading in COMMONSENSE_TASKS.items()),
        beams=4,
        max_new_tokens=32,
    ),
)
SUITES: Mapping[str, Suite] = {suite.name: suite for suite in _SUITES}


def suite_of(name: str) -> Suite:
    """The suite with this name.

    Raises:
        MmdoraError: if there is no such suite.
    """
    if name not in SUITES:
        raise MmdoraError(f"no suite {name!r}; there are {', '.join(SUITES)}")
    return SUITES[name]


@dataclass(frozen=True)
class Cell:
    """A number of the table in percent (None if it is not known), and where and on which split it was scored."""

    value: float | None
    scored: str
    split: str | None = None


def average(cells: Iterable[Cell | None]) -> float | None:
    """The average as in the paper; None if a column is blank."""
    values = [None if cell is None else cell.value for cell in cells]
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if len(known) == len(values) else None


def entered_scores(suite: Suite, models: Sequence[str], given: Iterable[str]) -> dict[str, dict[str, float]]:
    """Read scores of servers, `TASK=PERCENT` or `MODEL:TASK=PERCENT`, into model -> task -> percent.

    Raises:
        MmdoraError: if a model or column is unknown, or a score is no number from 0 to 1000.
    """
    entered: dict[str, dict[str, float]] = {model: {} for model in models}
    for text in given:
        place, _, number = text.rpartition("=")
        model, _, task = place.rpartition(":")
        model = model or (models[0] if len(models) == 1 else "")
        if model not in entered:
            raise MmdoraError(f"--scores {text}: say which model it is of, as in {models[0]}:{task or 'vqav2'}=78.6")
        try:
            value = float(number)
        except ValueError:
            value = -1.0
        if not 0 <= value <= 1000:  # CIDEr can be over 100.
            raise MmdoraError(f"--scores {text}: {number!r} is no score in percent")
        entered[model][suite.column(task).task] = value
    return entered


def suite_table(suite: Suite, cells: Mapping[str, Mapping[str, Cell]]) -> Table:
    """The paper's table with a model per line. Each heading says where and on which split the column was scored.

    Args:
        cells: model -> task -> cell; a column without a cell is blank.
    """
    from rich.table import Table

    table = Table(title=f"{suite.name}: percent, CIDEr times 100", title_justify="left")
    table.add_column("")
    for column in suite.columns:
        own = [row[column.task] for row in cells.values() if column.task in row]
        where = {cell.scored for cell in own}
        below = " ".join(filter(None, ["/".join(sorted(where)) or "no data", next((c.split for c in own), None)]))
        table.add_column(f"{column.heading}\n[dim]{below}[/]", justify="right")
    table.add_column("Avg.", justify="right")
    for name, row in cells.items():
        numbers = [row.get(column.task) for column in suite.columns]
        shown = ["" if cell is None or cell.value is None else f"{cell.value:.1f}" for cell in numbers]
        mean = average(numbers)
        table.add_row(name, *shown, "" if mean is None else f"{mean:.1f}")
    return table
