"""Defines the quickstart of each family: the configs of its runs, and the tasks on which they train."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from mmdora.data_prep import easy_vqa, scenes

METHODS = ("LoRA", "DoRA")
EASY_VQA = "easy-VQA test"


@dataclass(frozen=True)
class QuickTask:
    """A task of a quickstart.

    Attributes:
        heading: name of the task as people read it.
        task: the task of `mmdora eval --list` by which it is asked and scored.
        prepare: function that writes train.jsonl and test.jsonl below a folder.
    """

    heading: str
    task: str
    prepare: Callable[[Path], Any]


@dataclass(frozen=True)
class Pace:
    """Seconds on two idle CPU cores, from which the quickstart tells how much time is left.

    Attributes:
        step: seconds of a training step.
        question: seconds of an answer in an evaluation.
        other: seconds of loading a model for an evaluation, and of each other step.
    """

    step: float
    question: float
    other: float


@dataclass(frozen=True)
class Family:
    """The quickstart of one family.

    Attributes:
        configs: method -> name of a file in configs/tiny; these files differ in the method only.
        tasks: name in `data.tasks` -> task; the name is "" if the configs have a single task.
        pace: how long the steps take; None if nobody measured it, and then no time is foretold.
        quick: overrides of both configs for the short form.
        base: what is adapted instead of the base in the configs; None for that one.
    """

    title: str
    configs: Mapping[str, str]
    tasks: Mapping[str, QuickTask]
    out: Path
    pace: Pace | None
    quick: Sequence[str]
    licences: Sequence[str] = field(default_factory=list)
    base: str | None = None


FAMILIES: Mapping[str, Family] = {
    "llava": Family(
        title="tiny-llava on easy-VQA: base, LoRA, DoRA",
        configs={"LoRA": "lora", "DoRA": "dora"},
        tasks={"": QuickTask(EASY_VQA, "easy-vqa", easy_vqa.prepare)},
        out=Path("runs/quickstart"),
        pace=Pace(step=0.3, question=0.004, other=5),
        quick=("--training.steps=50", "--training.batch_size=32", "--training.lr=3e-3", "--training.save_every=25"),
        licences=(easy_vqa.DATASET.origin.licence,),
    ),
    "vl-bart": Family(
        title="tiny-vlbart on three tasks: base, LoRA, DoRA",
        configs={"LoRA": "vlbart_lora", "DoRA": "vlbart_dora"},
        tasks={
            "vqa": QuickTask(EASY_VQA, "easy-vqa", easy_vqa.prepare),
            # Captions are compared word for word, because CIDEr needs Java.
            "caption": QuickTask(
                "captions of drawn scenes, word for word",
                "scenes-caption-exact",
                partial(scenes.prepare, kind="caption", rows=10_000, held_out=1000),
            ),
            "nlvr": QuickTask(
                "statements on two drawn pictures",
                "scenes-nlvr2",
                partial(scenes.prepare, kind="nlvr2", rows=1500, held_out=250),
            ),
        },
        out=Path("runs/quickstart-vl-bart"),
        pace=Pace(step=0.35, question=0.01, other=5),
        quick=("--training.steps=50", "--training.batch_size=32", "--training.save_every=25"),
        licences=(easy_vqa.DATASET.origin.licence, scenes.DATASET.origin.licence),
    ),
}


def of_base(base: str) -> Family:
    """The quickstart of a base that the user names, by the configs of a small pretrained model.

    Args:
        base: hub id or checkpoint folder of a vision-language model.
    """
    own = Path(base).resolve().name if Path(base).is_dir() else base.rpartition("/")[2]
    return replace(
        FAMILIES["llava"],
        title=f"{own} on easy-VQA: base, LoRA, DoRA",
        configs={"LoRA": "smolvlm_lora", "DoRA": "smolvlm_dora"},
        out=Path(f"runs/quickstart-{own.lower()}"),
        pace=None,
        base=base,
    )
