"""Checks that a server gives the same answers as the checkpoint: both are asked the same questions, greedily."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from mmdora.data_prep.easy_vqa import samples
from mmdora.errors import MmdoraError
from mmdora.export.parity import QUESTIONS
from mmdora.export.verdict import Pair, Side, summary
from mmdora.families import Prompt, ask, family_of
from mmdora.models.load import load
from mmdora.predict.answers import evaluating
from mmdora.predict.endpoint import Endpoint, Usage
from mmdora.records.images import FileRef, open_image
from mmdora.records.reader import read_records
from mmdora.records.row import videos_of
from mmdora.records.turns import prompt_messages

__all__ = ["Pair", "Side", "summary", "verify"]


def verify(
    model: str,
    server: str,
    *,
    base: str | None = None,
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
        base: the checkpoint's base, which is opened and asked too, after the checkpoint has left the memory.
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
        MmdoraError: if a model cannot be loaded, the server cannot be asked, or there are no questions.
    """
    endpoint = Endpoint.parse(server)
    questions = list(_questions(data, images, limit))
    if not questions:
        raise MmdoraError(f"{data}: holds no questions")
    opened, processor = _opened(model, dtype)
    if data is None and not family_of(processor).sees:
        questions = [(str(number), ask(question)) for number, question in enumerate(QUESTIONS[:limit], 1)]
    ends = _stops(opened, processor)
    pairs = []
    for name, prompt in questions:
        here = _here(opened, processor, prompt, max_new_tokens)
        pair = Pair(name, here, _there(endpoint, prompt, max_new_tokens, ends))
        if pair.difference:
            say(f"{name}: {pair.difference}")
        pairs.append(pair)
    if base is None:
        return pairs
    del opened
    opened, processor = _opened(base, dtype)
    asked = zip(pairs, questions, strict=True)
    return [
        Pair(pair.name, pair.local, pair.served, _here(opened, processor, prompt, max_new_tokens))
        for pair, (_, prompt) in asked
    ]


def _questions(data: Path | None, images: Path | None, limit: int) -> Iterator[tuple[str, Prompt]]:
    if data is None:
        for path, question in samples(limit):
            yield path.name, ask(question, open_image(FileRef(path.name, path.parent)))
        return
    records = read_records(data, images)
    for number in range(min(limit, len(records))):
        record = records[number]
        if videos_of(record):
            raise MmdoraError(
                f"{data}: record {record['id']} holds a video; a server is asked about pictures only here"
            )
        yield record["id"], Prompt(prompt_messages(record), [open_image(image) for image in record["images"]])


def _opened(name: str, dtype: str) -> tuple[Any, Any]:
    return load(name, dtype=dtype, device="cuda" if torch.cuda.is_available() else None)


def _stops(model: Any, processor: Any) -> list[int]:
    return family_of(processor).ending.stops(model.generation_config)


def _here(model: Any, processor: Any, prompt: Prompt, max_new_tokens: int) -> Side:
    family = family_of(processor)
    inputs = family.encode_prompts([prompt]).to(model.device, dtype=model.dtype)
    with evaluating(model):
        made = model.generate(**inputs, **family.generation(model, max_new_tokens))
    ids = family.new_ids(made, inputs)[0].tolist()
    text = family.tokenizer.decode(ids, skip_special_tokens=True).strip()
    asked = tuple(inputs["input_ids"][0].tolist())
    return Side(text, len(asked), len(ids), asked, _without_end(ids, _stops(model, processor)))


def _there(endpoint: Endpoint, prompt: Prompt, max_new_tokens: int, ends: Sequence[int]) -> Side:
    usage: list[Usage] = []
    # All but the last state go at once: those of a long answer would take memory by the square of its length.
    (last,) = deque(endpoint.stream(prompt, max_new_tokens=max_new_tokens, usage=usage), maxlen=1)
    if not usage:
        return Side(last.text, None, None)
    told = usage[0]
    answer = None if told.answer_ids is None else _without_end(told.answer_ids, ends)
    return Side(last.text, told.prompt, told.answer, told.prompt_ids, answer)


def _without_end(ids: Sequence[int], ends: Sequence[int]) -> tuple[int, ...]:
    """An answer's tokens without the end of turn; a server may give it or leave it out."""
    return tuple(ids[:-1] if ids and ids[-1] in ends else ids)
