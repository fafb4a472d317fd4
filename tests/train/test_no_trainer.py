"""Training uses no private part of transformers' Trainer: mmdora/train knows no Trainer, and nobody subclasses it.

Users' own callbacks are given public objects of transformers, in one module.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_callback import TrainerControl, TrainerState

import mmdora

TOP = Path(mmdora.__file__).parents[1]
OURS = ("mmdora", "benchmarks", "demo", "data_prep", "tests")
STOCK = {stock.__name__ for stock in (Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments)}
FOR_CALLBACKS = STOCK - {"Trainer"}
PRIVATE = {
    name for stock in (Trainer, TrainingArguments) for name in vars(stock) if name[0] == "_" and name[1] != "_"
} | {"_tr_loss", "_total_loss_scalar", "_globalstep_last_logged"}  # made in a method, not in the class


def sources() -> Iterator[tuple[Path, ast.Module]]:
    for folder in OURS:
        for path in sorted((TOP / folder).rglob("*.py")):
            if not any(parent.is_symlink() for parent in path.parents) and path != Path(__file__):
                yield path, ast.parse(path.read_text(encoding="utf-8"))


def names(tree: ast.AST) -> set[str]:
    """Every name that is imported, read or written."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.alias):
            found.add(node.name.rpartition(".")[2])
        elif isinstance(node, ast.Name):
            found.add(node.id)
        elif isinstance(node, ast.Attribute):
            found.add(node.attr)
    return found


def problems(path: Path, tree: ast.Module) -> set[str]:
    """What a file may not do."""
    found: set[str] = set()
    known = names(tree)
    if path.parent == TOP / "mmdora" / "train":
        found |= known & (STOCK - FOR_CALLBACKS if path.name == "callbacks.py" else STOCK)
    if "Trainer" in known:
        found |= known & PRIVATE
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef) and any(names(base) & {"Trainer"} for base in node.bases):
            found.add(f"class {node.name}(Trainer)")
    return found


def test_no_private_member_is_overridden_or_written() -> None:
    checked = dict(sources())
    assert len(checked) > 200 and TOP / "mmdora" / "train" / "loop.py" in checked
    assert {str(path): found for path, tree in checked.items() if (found := problems(path, tree))} == {}


@pytest.mark.parametrize(
    ("place", "source"),
    [
        ("mmdora/train/loop.py", "from transformers import Trainer"),
        ("mmdora/train/callbacks.py", "from transformers import Trainer"),
        ("mmdora/train/log.py", "import transformers\nclass Log(transformers.TrainerCallback): pass"),
        ("mmdora/pretrain/x.py", "from transformers import Trainer\nclass Mine(Trainer):\n  def train(self): pass"),
        ("benchmarks/x.py", "from transformers import Trainer\ntrainer = Trainer()\ntrainer._tr_loss = 0"),
    ],
)
def test_what_is_found(place: str, source: str) -> None:
    assert problems(TOP / place, ast.parse(source))
