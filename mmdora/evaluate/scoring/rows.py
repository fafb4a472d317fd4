"""A row of predictions, which every scorer reads.

It is `{"id", "answer", "prediction", "images", "meta", "type"?}`: id, last answer, image paths and meta of a record,
and the generated text. `meta` keeps the fields of the official files under their own names.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mmdora.errors import MmdoraError

Prediction = Mapping[str, Any]


def need(row: Prediction, name: str) -> Any:
    """`meta[name]` of a row.

    Raises:
        MmdoraError: if the row has no such field, as in test splits, which only their servers can score.
    """
    value = (row.get("meta") or {}).get(name)
    if value is None:
        raise MmdoraError(
            f"row {row['id']}: no 'meta.{name}', which its task is scored by; prepare the records with `mmdora prep` "
            "from a split whose answers are published"
        )
    return value
