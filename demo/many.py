"""Lets all models answer a set of questions, in the wording of its task, and scores the answers. Without Gradio."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from mmdora.demo.compare import held, reason
from mmdora.demo.question_sets import QuestionSet
from mmdora.demo.turns import MAX_TOKENS, AnswerSettings, ModelColumn
from mmdora.errors import MmdoraError
from mmdora.evaluate.comparison import Compared
from mmdora.evaluate.output import prediction_rows
from mmdora.evaluate.run import Evaluation
from mmdora.evaluate.scoring.rows import Prediction
from mmdora.evaluate.scoring.scorers import score_rows
from mmdora.evaluate.tasks import Task
from mmdora.families import Prompt
from mmdora.families.template import with_question
from mmdora.records.images import open_image
from mmdora.records.row import Row, videos_of
from mmdora.records.turns import prompt_messages
from mmdora.records.videos import open_video

CHUNK = 8  # Questions that are answered before other visitors get their turn: a batch that fits where one question did.
MOST = 300  # Questions of a set that are asked at most; the page shows all of them in one table.


@dataclass
class Round:
    """A set of questions that all models answer.

    Attributes:
        rows: the questions, as many as are asked.
        asked: what is known of each question that was answered, without a prediction.
        texts: name of a model -> its answers so far; of a model that failed, those before.
        errors: name of a model that failed -> the reason. It is not asked again.
        seconds: time spent on answering, without waiting in the queue.
    """

    name: str
    task: Task
    rows: Sequence[Row]
    columns: Sequence[ModelColumn]
    asked: list[Prediction] = field(default_factory=list)
    texts: dict[str, list[str]] = field(default_factory=dict)
    errors: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0

    @classmethod
    def of(cls, questions: QuestionSet, columns: Sequence[ModelColumn], count: int, seed: int) -> Round:
        """A round of `count` questions, drawn at random, in their order in the set; all of them if it has no more."""
        count = min(count, MOST, len(questions.rows))
        chosen = sorted(random.Random(seed).sample(range(len(questions.rows)), count))
        rows = Chosen(questions.rows, chosen)
        return cls(questions.name, questions.task, rows, columns, texts={column.name: [] for column in columns})

    @property
    def done(self) -> int:
        return len(self.asked)

    @property
    def left_s(self) -> float | None:
        """Seconds that the rest will take, without the queue; None before the first answers."""
        return self.seconds / self.done * (len(self.rows) - self.done) if self.done else None

    def step(self, stop: threading.Event) -> Generator[Round, None, None]:
        """Let every model answer the next few questions; yield after each model. Stopped, they count as not asked.

        Raises:
            MmdoraError: if a question or its picture cannot be read.
        """
        begun = time.monotonic()
        rows = [self.rows[index] for index in range(self.done, min(self.done + CHUNK, len(self.rows)))]
        facts = prediction_rows(rows, [""] * len(rows))
        answers: dict[str, list[str]] = {}
        for column in self.columns:
            if column.name in self.errors:
                continue
            try:
                with held(column.place):
                    answers[column.name] = answer_rows(column, self.task, rows, stop)
            except Exception as error:
                self.errors[column.name] = reason(error)
            if stop.is_set():
                return
            yield self
        self.asked += facts
        for name, texts in answers.items():
            self.texts[name] += texts
        self.seconds += time.monotonic() - begun
        yield self

    @property
    def finished(self) -> bool:
        return self.done == len(self.rows) or len(self.errors) == len(self.columns)

    @cached_property
    def compared(self) -> Compared:
        """The scores of the models that answered every question, over the questions with a known answer.

        Read it when no more questions are asked: it is computed once.

        Raises:
            MmdoraError: if there is nothing to score, or the scorer cannot run here.
        """
        known = self.scored
        if not known:
            raise MmdoraError("no question has a known answer, so nothing is scored")
        evaluations: dict[str, Evaluation] = {}
        for name, texts in self.texts.items():
            if len(texts) == self.done:
                rows: list[Prediction] = [{**self.asked[index], "prediction": texts[index]} for index in known]
                scores = score_rows(self.task.scorer, rows)
                each = zip(rows, scores.each, strict=True)
                evaluations[name] = Evaluation(self.task, [{**row, "score": score} for row, score in each], scores)
        if not evaluations:
            raise MmdoraError("no model answered every question, so nothing is scored")
        return Compared(evaluations, self.name)

    @property
    def scored(self) -> list[int]:
        """The places of the questions with a known answer."""
        return [index for index, row in enumerate(self.asked) if row["answer"].strip()]

    def marks(self) -> dict[str, dict[int, float]]:
        """Name of a model -> place of a question -> its score; empty if nothing can be scored."""
        try:
            evaluations = self.compared.evaluations
        except MmdoraError:
            return {}
        return {
            name: dict(zip(self.scored, (float(row["score"]) for row in own.rows), strict=True))
            for name, own in evaluations.items()
        }


@dataclass(frozen=True)
class Chosen(Sequence[Row]):
    """Some rows of a sequence, each of which is read when it is asked for."""

    rows: Sequence[Row]
    places: Sequence[int]

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: Any) -> Any:
        return Chosen(self.rows, self.places[index]) if isinstance(index, slice) else self.rows[self.places[index]]


def answer_rows(column: ModelColumn, task: Task, rows: Sequence[Row], stop: threading.Event) -> list[str]:
    """The greedy answers of a model: in a batch if it can, else one after the other, as a server is asked."""
    reply: Callable[..., list[str]] | None = column.reply
    if reply is not None:
        return reply(task, rows, stop)
    settings = AnswerSettings(max_tokens=min(task.max_new_tokens, MAX_TOKENS))
    texts = []
    for row in rows:
        images, videos = [open_image(image) for image in row["images"]], [open_video(video) for video in videos_of(row)]
        prompt = Prompt(asked_messages(task, row), images, videos=videos)
        text = ""
        for part in column.speak(prompt, settings, stop):
            text = part.text
        texts.append(text)
    return texts


def asked_messages(task: Task, row: Row) -> list[dict[str, Any]]:
    """The conversation of a row with its last question in the wording of the task."""
    return with_question(prompt_messages(row), lambda question: task.ask(row, question))
