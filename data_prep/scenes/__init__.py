"""Drawn scenes: pictures of one to four coloured shapes with conversations about them, and tasks on such pictures.

Without `--kind` they are the conversations that the bundled bases are pretrained on, so that the quickstart needs no
network. Every scene follows from `seed` and its number alone. Shapes have a colour, a size and a place. The
conversations hold captions, questions about colour, shape, size, place, number and relation, statements to confirm or
deny, and follow-up turns. No sentence in them is a question of easy-VQA; a test compares them.

With `--kind` they are one of `tasks.KINDS`, each a small dataset in the form of a public one. `tiny-vlbart` is
pretrained on `questions`, `places`, `names` and `pair-questions`.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Literal

from mmdora.data_prep.scenes import tasks
from mmdora.data_prep.scenes.drawing import COLOURS, SHAPES, SIDE, Thing, scene
from mmdora.data_prep.scenes.language import caption, conversation, existence
from mmdora.errors import MmdoraError
from mmdora.outputs.stop import leave_to_parent
from mmdora.prepare import pictures
from mmdora.prepare.dataset import Dataset, Origin
from mmdora.prepare.run import write_splits
from mmdora.records.record import Record, qa_record

__all__ = ["COLOURS", "SHAPES", "SIDE", "Thing", "caption", "conversation", "existence", "prepare", "scene"]

FIRST_TEST_SCENE = 10**9
"""The number of the first test scene, which is larger than that of any training scene."""
SCENES_AT_ONCE = 200
"""Scenes that a process draws before it hands over their records, so that it seldom waits for the main process."""

Kind = Literal[
    "caption", "count", "relation", "pope", "nlvr2", "ocr", "clips", "clip-features", "questions", "places",
    "names", "pair-questions",
]  # fmt: skip


def prepare(
    out: Path,
    *,
    kind: Kind | None = None,
    rows: int = 1000,
    seed: int = 0,
    held_out: int = 500,
    presence: float = 0.0,
    workers: int = 2,
) -> dict[str, int]:
    """Draw the scenes and write their records; returns the number of records per split.

    Parameters
    ----------
    out
        Folder for a file per split, dataset_card.json and report.html.
    kind
        A task: captions, counting, relations, existence (POPE's form), statements on two pictures (NLVR2's form),
        words to read, clips as frames or as 512-wide features; the conversations' questions one by one, places and
        sizes, names of things, questions on two pictures. Without it: the conversations of the bundled base.
    rows
        How many scenes to train on.
    seed
        Seed of the scenes to train on; the test scenes of a kind are the same for every seed.
    held_out
        How many scenes to test on.
    presence
        Share of the conversations that mostly show one thing and ask whether something is there, which is what a
        small model learns last.
    workers
        How many processes draw.
    """
    if kind and presence:
        raise MmdoraError("--presence belongs to the conversations; leave it out with --kind")
    make = tasks.make if kind else _make
    dataset = replace(DATASET, name=f"{DATASET.name}-{kind}") if kind else DATASET
    with ProcessPoolExecutor(workers, initializer=leave_to_parent) as pool:

        def drawn() -> dict[str, Iterator[Record]]:
            splits = {}
            for split, amount, first in (("train", rows, 0), ("test", held_out, FIRST_TEST_SCENE)):
                if kind:
                    jobs = [(out, split, seed, number, kind) for number in range(amount)]
                else:
                    jobs = [(out, split, seed, first + i, presence) for i in range(amount)]
                splits[split] = (record for made in pool.map(make, jobs, chunksize=SCENES_AT_ONCE) for record in made)
            return splits

        try:
            return write_splits(out, dataset, drawn)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)  # Else a stopped run would draw all the rest.


def _make(job: tuple[Path, str, int, int, float]) -> list[Record]:
    """Make the record of one scene. The bundled base was trained on exactly these draws, so they must not change."""
    out, split, seed, number, presence = job
    random = Random(f"{seed}:{number}")
    asks_presence = random.random() < presence
    things, picture = scene(random, most=random.choice((1, 1, 1, 2)) if asks_presence else 4)
    name = f"images/{split}/{number}.png"
    pictures.save(out, name, pictures.png(picture, optimize=False, compress_level=1))
    pairs = (existence if asks_presence else conversation)(random, things)
    if split == "test":
        # A follow-up such as "how big is it?" makes no sense without the question before it.
        pairs = [random.choice([pair for pair in pairs if "it?" not in pair[0]])]
    return [qa_record(f"{split}-{number}", name, pairs)]


DATASET = Dataset(
    name="scenes",
    summary="Drawn scenes: conversations, or one of twelve small tasks",
    details=(
        "Draws the pictures, so there is no file to give. Writes train.jsonl, test.jsonl (single questions about other "
        "scenes) and images/."
    ),
    example="--kind count --out data/scenes-count",
    origin=Origin(licence="Apache-2.0 (drawn by this package)", source="mmdora data_prep/scenes"),
    make=prepare,
)
