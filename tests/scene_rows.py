"""Drawn scenes as records with several questions each, for the tests that train and answer."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from random import Random
from typing import Any

from mmdora.data_prep import scenes
from mmdora.records.record import qa_record


def draw_scenes(folder: Path, seeds: Iterable[int], *, questions: int | None = None) -> list[dict[str, Any]]:
    """Draw one scene per seed into `folder`, as `<seed>.png`.

    Returns:
        their records, each with all its questions, or with the first `questions` of them.
    """
    rows = []
    for seed in seeds:
        random = Random(seed)
        things, picture = scenes.scene(random)
        picture.save(folder / f"{seed}.png")
        rows.append(qa_record(f"scene-{seed}", f"{seed}.png", scenes.conversation(random, things)[:questions]))
    return rows
