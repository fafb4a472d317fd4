"""Reads `dataset_card.json`, which `mmdora prep` writes beside records: what they hold and where their pictures lie."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mmdora.errors import MmdoraError

CARD = "dataset_card.json"


def read(folder: Path) -> dict[str, Any]:
    """The card of a folder; empty where there is none.

    Raises:
        MmdoraError: the file is not a card.
    """
    path = folder / CARD
    if not path.is_file():
        return {}
    try:
        card = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(card, dict) or not all(isinstance(s, dict) for s in card.get("splits", {}).values()):
            raise ValueError
    except (ValueError, AttributeError):
        raise MmdoraError(f"{path}: not a dataset card; remove it or choose another folder") from None
    return card


def images_root(records: Path) -> Path:
    """The folder that the image paths of a file of records start from: the one in the card beside it, or its own.

    Raises:
        MmdoraError: the card names a folder that is not there, and the records are not packed with their pictures.
    """
    entries = read(records.parent).get("splits", {}).values()
    named = next((entry.get("images_root") for entry in entries if entry.get("file") == records.name), None)
    root = Path(named) if named else records.parent
    if not root.is_dir():
        if records.suffix == ".parquet":  # Packed records hold their pictures.
            return records.parent
        raise MmdoraError(
            f"{records.parent / CARD}: the pictures of {records.name} lay in {root}, which is no folder now; say where "
            "they are with data.images / --images"
        )
    return root
