"""`dataset_card.json`: what a folder of records holds, from which files, under which licence."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmdora.errors import MmdoraError
from mmdora.version import __version__

CARD = "dataset_card.json"


def read(out: Path) -> dict[str, Any]:
    """The card of a folder; empty where there is none."""
    path = out / CARD
    if not path.is_file():
        return {}
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        raise MmdoraError(f"{path}: not a dataset card; remove it or choose another folder") from None


def check_owner(out: Path, name: str) -> None:
    """Raise if the folder holds the records of another dataset."""
    owner = read(out).get("name", name)
    if owner != name:
        raise MmdoraError(f"{out}: holds records of {owner}; choose another folder for {name}")


def write(out: Path, about: Any, splits: Mapping[str, Mapping[str, Any]]) -> None:
    """Add or replace splits in the folder's card.

    Args:
        about: the dataset's module, with NAME, LICENCE, SOURCE and UNVERIFIED.
        splits: file, sha256, counts, histograms, inputs and numbers of sampled records of each.
    """
    card = {
        "name": about.NAME,
        "licence": about.LICENCE,
        "source": about.SOURCE,
        "unverified": list(about.UNVERIFIED),
        "made_by": f"mmdora {__version__}",
        "splits": read(out).get("splits", {}) | dict(splits),
    }
    partial = out / f"{CARD}.partial"
    partial.write_text(json.dumps(card, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    partial.replace(out / CARD)
