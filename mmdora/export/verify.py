"""Checks that a server gives the same answers as the checkpoint: both are asked the same questions, greedily."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from mmdora.data_prep.easy_vqa import samples
from mmdora.errors import MmdoraError
from mmdora.export.parity import QUESTIONS
from mmdora.families import Prompt, ask, family_of
from mmdora.models.load import load
from mmdora.predict.answers import stream
from mmdora.predict.endpoint import Endpoint, Usage
from mmdora.records.images import FileRef, open_image
from mmdora.records.reader import read_records
from mmdora.records.turns import prompt_messages


@dataclass(frozen=True)
class Side:
    """The answer of the checkpoint or of the server; token counts are None if the server does not give them."""

    text: str
    prompt_tokens: int | None
    answer_tokens: int | None


@dataclass(frozen=True)
class Pair:
    """One question and both answers."""

    name: str
    local: Side
    served: Side

    @property
    def difference(self) -> str | None:
        """A description of the first difference; None if there is none.

        Token counts may differ by one, because a server may or may not count the end-of-turn token.
        """
        here, there = self.local, self.served
        if here.prompt_tokens != there.prompt_tokens and there.prompt_tokens is not None:
            counts = f"{here.prompt_tokens} tokens here, {there.prompt_tokens} there"
            return f"the prompt has {counts} (another chat template or number of image tokens)"
        if here.text != there.text:
            start = next((i for i, (a, b) in enumerate(zip(here.text, there.text, strict=False)) if a != b), None)
            at = min(len(here.text), len(there.text)) if start is None else start
            return f"from character {at} on: {here.text[at : at + 60]!r} here, {there.text[at : at + 60]!r} there"
        if there.answer_tokens is not None and here.answer_tokens not in (there.answer_tokens, there.answer_tokens + 1):
            return f"the answer has {here.answer_tokens} tokens here, {there.answer_tokens} there"
        return None


def verify(
    model: str,
    server: str,
    *,
    data: Path | None = None,
    images: Path | None = None,
    limit: int = 16,
    max_new_tokens: int = 64,
    dtype: str = "fp32",
    say: Callable[[str], Any] = print,
) -> list[Pair]:
    """Ask a checkpoint and the server that should serve it the same questions, greedily, one after the other.

    Args:
        model: folder, hub id or bundled name of the checkpoint, which is opened here.
        server: address of the server, http://HOST:PORT/v1, if needed followed by #NAME of the model there.
        data: file of records whose first questions are asked; by default questions of the easy-VQA test split, or eight
            questions without a picture if the model reads text alone.
        images: root of the records' images; by default the folder of the file.
        limit: the most questions that are asked.
        max_new_tokens: the most tokens of an answer.
        dtype: dtype of the weights here; answers can only be equal if it is the server's.
        say: receives a line for each difference.

    Returns:
        A pair for each question.

    Raises:
        MmdoraError: if the model cannot be loaded, the server cannot be asked, or there are no questions.
    """
    endpoint = Endpoint.parse(server)
    questions = list(_questions(data, images, limit))
    if not questions:
        raise MmdoraError(f"{data}: holds no questions")
    opened, processor = load(model, dtype=dtype, device="cuda" if torch.cuda.is_available() else None)
    if data is None and not family_of(processor).sees:
        questions = [(str(number), ask(question)) for number, question in enumerate(QUESTIONS[:limit], 1)]
    pairs = []
    for name, prompt in questions:
        pair = Pair(name, _here(opened, processor, prompt, max_new_tokens), _there(endpoint, prompt, max_new_tokens))
        if pair.difference:
            say(f"{name}: {pair.difference}")
        pairs.append(pair)
    return pairs


def summary(pairs: Sequence[Pair]) -> str:
    """A sentence that says how many answers are equal, and whether their token counts are too.

    Raises:
        MmdoraError: if some answers differ; the message describes the first difference.
    """
    different = [pair for pair in pairs if pair.difference]
    if different:
        raise MmdoraError(
            f"verify: {len(different)} of {len(pairs)} answers differ; the first: {different[0].name}: "
            f"{different[0].difference}"
        )
    told = all(pair.served.answer_tokens is not None for pair in pairs)
    counts = "prompts and answers of as many tokens" if told else "the server does not tell its token counts"
    return f"{len(pairs)} answers equal, word for word; {counts}"


def _questions(data: Path | None, images: Path | None, limit: int) -> Iterator[tuple[str, Prompt]]:
    if data is None:
        for path, question in samples(limit):
            yield path.name, ask(question, open_image(FileRef(path.name, path.parent)))
        return
    records = read_records(data, images)
    for number in range(min(limit, len(records))):
        record = records[number]
        yield record["id"], Prompt(prompt_messages(record), [open_image(image) for image in record["images"]])


def _here(model: Any, processor: Any, prompt: Prompt, max_new_tokens: int) -> Side:
    *_, last = stream(model, processor, prompt, max_new_tokens=max_new_tokens)
    encoded = family_of(processor).encode_prompts([prompt])
    return Side(last.text, encoded["input_ids"].shape[1], last.tokens)


def _there(endpoint: Endpoint, prompt: Prompt, max_new_tokens: int) -> Side:
    usage: list[Usage] = []
    # All but the last state go at once: those of a long answer would take memory by the square of its length.
    (last,) = deque(endpoint.stream(prompt, max_new_tokens=max_new_tokens, usage=usage), maxlen=1)
    return Side(last.text, usage[0].prompt if usage else None, usage[0].answer if usage else None)
