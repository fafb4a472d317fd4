"""Records with their images inside, out of a Parquet file that `mmdora prep --pack` wrote."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def read_packed(path: Path) -> Iterator[tuple[dict[str, Any], list[bytes]]]:
    """Each record, its `images` as names, with the contents of its image files in the same order."""
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(batch_size=32):
            for row in batch.to_pylist():
                pictures = row["images"]
                record = {
                    "id": row["id"],
                    "messages": json.loads(row["messages"]),
                    "images": [picture["path"] for picture in pictures],
                    "meta": json.loads(row["meta"]),
                }
                yield record, [picture["bytes"] for picture in pictures]
