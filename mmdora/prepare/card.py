"""`dataset_card.json`: what a folder of records holds, from which files it was made, and under which licence."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmdora.errors import MmdoraError
from mmdora.outputs.written import Written
from mmdora.prepare.dataset import Dataset
from mmdora.version import __version__

CARD = "dataset_card.json"


def read(out: Path) -> dict[str, Any]:
    """The card of a folder; empty where there is none.

    Raises:
        MmdoraError: the file is not JSON.
    """
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


def write(written: Written, dataset: Dataset, splits: Mapping[str, Mapping[str, Any]]) -> None:
    """Add splits to the folder's card, or replace those of the same name.

    Args:
        splits: for each split its file and the file's SHA-256, the counts and histograms of `output.Counts`, the
            official files, and the numbers of the records that the report shows.
    """
    card = {
        "name": dataset.name,
        "licence": dataset.origin.licence,
        "source": dataset.origin.source,
        "unverified": list(dataset.origin.unverified),
        "made_by": f"mmdora {__version__}",
        "splits": read(written.folder).get("splits", {}) | dict(splits),
    }
    written.write(CARD, json.dumps(card, indent=1, ensure_ascii=False) + "\n")
