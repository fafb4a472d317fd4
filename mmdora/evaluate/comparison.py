"""Several models on the same questions: their scores, each pair's difference, and the tables that show both."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.markup import escape
from rich.text import Text

from mmdora.errors import MmdoraError
from mmdora.evaluate.run import Evaluation
from mmdora.evaluate.scoring.scores import Scores
from mmdora.evaluate.scoring.significance import Comparison
from mmdora.evaluate.scoring.significance import compare as compare_rows
from mmdora.evaluate.table import ScoreRow, comparisons_table, scores_table


@dataclass(frozen=True)
class Compared:
    """Evaluations of one or more models on the same questions; as text, the table that `mmdora eval` prints.

    Attributes:
        evaluations: name of a model -> its answers and scores.
        what: the task, its split and how many questions a rehearsal asked, for the title.
        folder: where the files are; None if none were written.
    """

    evaluations: Mapping[str, Evaluation]
    what: str
    folder: Path | None = None

    @cached_property
    def scores(self) -> dict[str, Scores]:
        """Name -> scores, of the models that could be scored here."""
        return {name: own.scores for name, own in self.evaluations.items() if own.scores is not None}

    @property
    def first(self) -> str:
        """The model that the others are compared with."""
        return next(iter(self.evaluations))

    @cached_property
    def pairs(self) -> dict[tuple[str, str], Comparison]:
        """(one model, a later one) -> the later one's score minus the other's, with interval and p of a paired test.

        Raises:
            MmdoraError: the models answered different questions.
        """
        return {
            (one, two): compare_rows(
                self.evaluations[one].task.scorer, self.evaluations[one].rows, self.evaluations[two].rows
            )
            for one, two in itertools.combinations(self.scores, 2)
        }

    @property
    def minus_first(self) -> dict[str, Comparison]:
        """Name of each other model -> the pair of the first model and this one."""
        return {two: comparison for (one, two), comparison in self.pairs.items() if one == self.first}

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as in `comparison.json`."""
        return {
            "first": self.first,
            "scores": {name: scores.to_dict() for name, scores in self.scores.items()},
            "minus first": {name: vars(comparison) for name, comparison in self.minus_first.items()},
            "pairs": [{"first": one, "second": two} | vars(found) for (one, two), found in self.pairs.items()],
        }

    def __rich__(self) -> RenderableType:
        if not self.scores:
            results = self.evaluations[self.first].task.results
            place = f"{self.folder}/MODEL" if self.folder else "the answers"
            told = f"scored by its server; hand in {place}/{results.name}" if results else f"no answers; see {place}"
            return Text(f"{self.what}: {told if results else f'the records hold {told}'}")
        rows = [ScoreRow(name, scores.to_dict()) for name, scores in self.scores.items()]
        lines: list[RenderableType] = [scores_table(rows, f"{escape(self.what)}: {rows[0].scores['metric']}")]
        if self.pairs:
            lines.append(comparisons_table(self.pairs))
        for name, scores in self.scores.items():
            if numbers := ", ".join(f"{number} {score.value:.1%}" for number, score in scores.details.items()):
                lines.append(Text(f"{name}: {numbers}"))
        if earlier := self.evaluations[self.first].earlier:
            lines.append(
                Text(f"scored: the last answer of each conversation; {earlier:,} earlier ones are given in the prompts")
            )
        return Group(*lines, *([Text(f"files: {self.folder}")] if self.folder else []))

    def __str__(self) -> str:
        console = Console(width=120, color_system=None, force_jupyter=False)
        with console.capture() as captured:
            console.print(self)
        return captured.get().rstrip()


def check_same_questions(evaluations: Mapping[str, Evaluation]) -> None:
    """Raise an MmdoraError unless these are evaluations on the same rows of one task."""
    first_name, first = next(iter(evaluations.items()))
    for name, other in evaluations.items():
        if other.task.name != first.task.name:
            raise MmdoraError(f"compare: {first_name} answered {first.task.name}, and {name} {other.task.name}")
        if [row["id"] for row in other.rows] != [row["id"] for row in first.rows]:
            raise MmdoraError(
                f"compare: {first_name} and {name} answered different questions; evaluate both on the same"
            )
