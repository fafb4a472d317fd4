"""Small tasks on drawn pictures; most kinds have the form of a public dataset.

A draw follows from kind, split, seed and number alone. `Draw.about` puts into words what it shows, and a hash of these
words says whether it belongs to the test split. So no scene of the test split looks like one that was trained on,
whatever the seeds and the numbers of rows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import count
from pathlib import Path
from random import Random
from typing import Any

from mmdora.data_prep.scenes import clips, one_picture, pair_questions, pairs, words
from mmdora.data_prep.scenes.drawing import Draw
from mmdora.prepare import pictures
from mmdora.prepare.held_out import held_out
from mmdora.prepare.record import RecordDraft, asked

KINDS: Mapping[str, Callable[[Random, str], Draw]] = {
    "caption": one_picture.captions,
    "count": one_picture.counts,
    "relation": one_picture.relations,
    "pope": one_picture.existence,
    "nlvr2": pairs.statements,
    "ocr": words.words,
    "clips": clips.frames,
    "clip-features": clips.features,
    "questions": one_picture.questions,
    "places": one_picture.places,
    "names": one_picture.names,
    "pair-questions": pair_questions.questions,
}


def make(job: tuple[Path, str, int, int, str]) -> list[RecordDraft]:
    """The records of one draw, whose pictures (or features) are written below the folder.

    Args:
        job: the folder, the split, the seed, the number of the draw, and the kind.
    """
    out, split, seed, number, kind = job
    draw = draw_of(kind, split, seed, number)
    names = []
    for index, picture in enumerate(draw.pictures):
        names.append(f"images/{split}/{number}{f'-{index}' if len(draw.pictures) > 1 else ''}.png")
        pictures.save(out, names[-1], pictures.png(picture, optimize=False, compress_level=1))
    records: list[RecordDraft] = []
    for index, question in enumerate(draw.asked):
        name = f"{split}-{number}" + (f"-{index}" if len(draw.asked) > 1 else "")
        meta: dict[str, Any] = dict(question.meta)
        shown = [names[place] for place in (range(len(names)) if question.pictures is None else question.pictures)]
        records.append(asked(meta.get("identifier", name), shown, question.text, question.answer, **meta))
    if draw.features is not None:
        pictures.save(out, f"features/{split}/{number}.npy", clips.npy(draw.features))
        for record in records:
            record["meta"] |= {"features": f"features/{split}/{number}.npy", "frames": len(draw.features)}
    return records


def draw_of(kind: str, split: str, seed: int, number: int) -> Draw:
    """The first draw of this number that belongs to the split; the seed of the split test is always 0."""
    for attempt in count():
        random = Random(f"{kind}:{split}:{seed if split == 'train' else 0}:{number}:{attempt}")
        draw = KINDS[kind](random, f"{split}-{number}")
        if held_out(f"{kind}:{draw.about}") == (split == "test"):
            return draw
    raise AssertionError
