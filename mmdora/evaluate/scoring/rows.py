"""A row of predictions, what every scorer reads.

`{"id", "answer", "prediction", "images", "meta", "type"?}`: a record's id, last answer, image paths
and meta beside the generated text. `meta` keeps the fields of the official files under their names.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mmdora.errors import MmdoraError

Prediction = Mapping[str, Any]


def need(row: Prediction, name: str) -> Any:
    """`meta[name]` of a row.

    Raises:
        MmdoraError: naming the row, if it is not there: test splits are scored by their servers.
    """
    value = (row.get("meta") or {}).get(name)
    if value is None:
        raise MmdoraError(
            f"row {row['id']}: no 'meta.{name}', which its task is scored by; prepare the records with `mmdora prep` "
            "from a split whose answers are published"
        )
    return value
