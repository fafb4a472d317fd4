"""Writes `dataset_card.json`: what a folder holds, from which files it was made, and under which licence."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmdora.errors import MmdoraError
from mmdora.outputs.written import Written
from mmdora.prepare.dataset import Dataset
from mmdora.records.card import CARD, read
from mmdora.version import __version__


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
    entries = read(written.folder).get("splits", {}) | dict(splits)
    files = [Path(source["file"]).name for entry in entries.values() for source in entry.get("inputs", ())]
    owned = all(map(dataset.origin.owns, files))
    card = {
        "name": dataset.name,
        "licence": dataset.origin.licence if owned else None,  # The user's own data are under no licence of others.
        "source": dataset.origin.source,
        "unverified": list(dataset.origin.unverified),
        "made_by": f"mmdora {__version__}",
        "splits": entries,
    }
    written.write(CARD, json.dumps(card, indent=1, ensure_ascii=False) + "\n")
