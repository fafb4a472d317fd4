"""Joins of official files that hold questions, captions or images apart."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mmdora.errors import MmdoraError
from mmdora.prepare.read import Reader, Row


def questions_with_annotations(read: Reader, files: list[Path]) -> Iterator[Row]:
    """(data_subtype, question, annotation) of every question of files in VQA's format.

    A file with `questions` goes with the file of the same `data_subtype` that holds `annotations`; without
    one (test sets) the annotation is None.
    """
    questions: dict[str, Path] = {}
    annotations: dict[str, Path] = {}
    for path in files:
        header, holds = read.header(path)
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
        index = read.index(read.elements(notes, "annotations"), "question_id") if notes else None
        for row in read.elements(path, "questions"):
            yield row._replace(value=_joined(subset, row.value, index))


def _joined(subset: str, question: Any, index: Any) -> Any:
    try:
        note = index.one(question["question_id"], "question") if index else None
        return subset, question, note
    except MmdoraError as error:
        return error
    except (KeyError, TypeError):
        return MmdoraError("a question needs a question_id")


def images_with_captions(read: Reader, path: Path) -> Iterator[Row]:
    """(image, its captions) of every image of a file in COCO's format; None where the file holds no captions."""
    index = read.index(read.elements(path, "annotations", optional=True), "image_id")
    holds_captions = len(index) > 0
    for row in read.elements(path, "images"):
        yield row._replace(value=(row.value, index.all(field(row.value, "id")) if holds_captions else None))


def with_subtitles(read: Reader, files: list[Path], subtitles: Path | None) -> Iterator[Row]:
    """(row, subtitles of its `vid_name` as one text, or None) of JSONL files about videos.

    Subtitles are VALUE's: JSONL of `{vid_name, sub: [{text, start, end}]}`.
    """
    index = read.index(read.lines(subtitles), "vid_name", complete=False) if subtitles else None
    for path in files:
        for row in read.lines(path):
            try:
                value = json.loads(row.value)
            except ValueError:
                yield row  # told where it is converted
                continue
            found = index.all(field(value, "vid_name")) if index else []
            lines = [line["text"].strip() for entry in found for line in entry["sub"]]
            yield row._replace(value=(value, " ".join(lines) or None))


def field(value: Any, name: str) -> Any:
    """A field of a row, None where it has none: a row that is no object is told so where it is converted."""
    return value.get(name) if isinstance(value, dict) else None
