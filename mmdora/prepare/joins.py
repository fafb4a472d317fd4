"""Joins of official files that hold questions, answers, captions or images apart; ways for `OfficialFiles.rows`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mmdora.errors import MmdoraError
from mmdora.prepare.index import Index
from mmdora.prepare.inputs import Inputs, VideoInputs
from mmdora.prepare.read import OfficialRow, Reader


def questions_with_annotations(reader: Reader, inputs: Inputs) -> Iterator[OfficialRow]:
    """(data_subtype, question, annotation) of every question of files in VQA's format.

    A file with `questions` goes with the file of the same `data_subtype` that holds `annotations`. Where there is
    none, as for test sets, the annotation is None.

    Raises:
        MmdoraError: a file is of another format, two files hold the same, or annotations have no questions.
    """
    questions: dict[str, Path] = {}
    annotations: dict[str, Path] = {}
    for path in inputs.files:
        header, holds = reader.header(path)
        subset = header.get("data_subtype")
        if holds not in ("questions", "annotations") or not isinstance(subset, str):
            raise MmdoraError(f"{path}: expected data_subtype and then a list of questions or annotations")
        kind = questions if holds == "questions" else annotations
        if subset in kind:
            raise MmdoraError(f"{path}: {kind[subset].name} holds {subset} already")
        kind[subset] = path
    for subset in annotations.keys() - questions.keys():
        raise MmdoraError(f"{annotations[subset]}: annotations without the questions of {subset}; add them to --in")
    for subset, path in questions.items():
        notes = annotations.get(subset)
        index = reader.index(reader.elements(notes, "annotations"), "question_id") if notes else None
        for row in reader.elements(path, "questions"):
            yield row._replace(value=_joined(subset, row.value, index))


def _joined(subset: str, question: Any, index: Index | None) -> Any:
    try:
        note = index.one(question["question_id"], "question") if index else None
        return subset, question, note
    except MmdoraError as error:
        return error
    except (KeyError, TypeError):
        return MmdoraError("a question needs a question_id")


def images_with_captions(reader: Reader, path: Path) -> Iterator[OfficialRow]:
    """(image, its captions) of every image of a file in COCO's format; no list but None if the file has no captions."""
    index = reader.index(reader.elements(path, "annotations", optional=True), "image_id")
    holds_captions = len(index) > 0
    for row in reader.elements(path, "images"):
        yield row._replace(value=(row.value, index.all(field(row.value, "id")) if holds_captions else None))


def with_subtitles(reader: Reader, inputs: VideoInputs) -> Iterator[OfficialRow]:
    """(row, subtitles of its `vid_name` as one text, or None) of files of JSON Lines about videos.

    Subtitles are in VALUE's format, JSON Lines of `{vid_name, sub: [{text, start, end}]}`.
    """
    subtitles = inputs.subtitles
    index = reader.index(reader.lines(subtitles), "vid_name", complete=False) if subtitles else None
    for path in inputs.files:
        for row in reader.lines(path):
            try:
                value = json.loads(row.value)
            except ValueError:
                yield row  # `convert` parses the line again and says what is wrong with it
                continue
            spoken = index.all(field(value, "vid_name")) if index else []
            lines = [line["text"].strip() for entry in spoken for line in entry["sub"]]
            yield row._replace(value=(value, " ".join(lines) or None))


def field(value: Any, name: str) -> Any:
    """A field of a row; None if there is none, or if the row is not an object, which `convert` then reports."""
    return value.get(name) if isinstance(value, dict) else None
