"""Drawn scenes: pictures of one to four coloured shapes with conversations about them, and tasks on such pictures.

Without `--kind`: what the bundled bases are pretrained on, so that the quickstart needs no network. Every
scene follows from `seed` and its number alone. Shapes have a colour, a size and a place; the conversations
hold captions, questions on colour, shape, size, place, number and relation, statements to confirm
or deny, and follow-up turns. No sentence there is a question of easy-VQA (a test compares them).

With `--kind`: one of `tasks.KINDS`, each a small dataset in the form of a public one; `questions`, `places`,
`names` and `pair-questions` are what `tiny-vlbart` is pretrained on.
"""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any, Literal

from mmdora.data_prep.scenes import tasks
from mmdora.data_prep.scenes.drawing import COLOURS, SHAPES, SIDE, Thing, scene
from mmdora.data_prep.scenes.language import caption, conversation, existence
from mmdora.errors import MmdoraError
from mmdora.prepare.run import write_splits
from mmdora.records.record import qa_record

__all__ = ["COLOURS", "SHAPES", "SIDE", "Thing", "caption", "conversation", "existence", "prepare", "scene"]

NAME = "scenes"
LICENCE = "Apache-2.0 (drawn by this package)"
SOURCE = "mmdora data_prep/scenes"
UNVERIFIED = ()

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
    """Drawn scenes: `train.jsonl`, `test.jsonl` (single questions, other scenes), `images/`, card and report.

    Example: `mmdora prep scenes --kind count --out data/scenes-count`

    Parameters
    ----------
    out
        Folder for a file per split, dataset_card.json and report.html.
    kind
        A task: captions, counting, relations, existence (POPE's form), statements on two pictures (NLVR2's form),
        words to read, clips as frames or as 512-wide features; the conversations' questions one by one, places and
        sizes, names of things, questions on two pictures. Without: the conversations of the bundled base.
    rows
        Scenes to train on.
    seed
        Of the scenes to train on; a kind's test scenes are the same for every seed.
    held_out
        Scenes to test on.
    presence
        Share of the conversations that mostly show one thing and ask whether something is there, what a small
        model learns last.
    workers
        Processes.
    """
    if kind and presence:
        raise MmdoraError("--presence belongs to the conversations; leave it out with --kind")
    make = tasks.make if kind else _make
    about = SimpleNamespace(NAME=f"{NAME}-{kind}" if kind else NAME, LICENCE=LICENCE, SOURCE=SOURCE, UNVERIFIED=())
    with ProcessPoolExecutor(workers) as pool:
        splits = {}
        for split, amount, first in (("train", rows, 0), ("test", held_out, 10**9)):
            if kind:
                jobs = [(out, split, seed, number, kind) for number in range(amount)]
            else:
                jobs = [(out, split, seed, first + i, presence) for i in range(amount)]
            (out / "images" / split).mkdir(parents=True, exist_ok=True)
            splits[split] = (record for made in pool.map(make, jobs, chunksize=200) for record in made)
        return write_splits(out, about, splits)


def _make(job: tuple[Path, str, int, int, float]) -> list[dict[str, Any]]:
    """A conversation; the draws are what the bundled base was trained on, so they stay as they are."""
    out, split, seed, number, presence = job
    random = Random(f"{seed}:{number}")
    asks_presence = random.random() < presence
    things, picture = scene(random, most=random.choice((1, 1, 1, 2)) if asks_presence else 4)
    name = f"images/{split}/{number}.png"
    picture.save(out / name, optimize=False, compress_level=1)
    pairs = (existence if asks_presence else conversation)(random, things)
    if split == "test":
        pairs = [random.choice([pair for pair in pairs if "it?" not in pair[0]])]  # no follow-up without its question
    return [qa_record(f"{split}-{number}", name, pairs)]
