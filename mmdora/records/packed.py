"""Reads records with their images inside from a Parquet file that `mmdora prep --pack` wrote."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from mmdora.errors import MmdoraError
from mmdora.records.json_stream import parse_line
from mmdora.records.record import Record

SUFFIX = ".parquet"
COLUMNS = ("id", "messages", "images", "meta")
ROWS = 32
"""Rows that become Python objects at a time: some MB with their images."""


def read_packed(path: Path | str, file: IO[bytes] | None = None) -> Iterator[tuple[Record, list[bytes]]]:
    """Yield each record with the contents of its image files, in the order of the names in its `images`.

    Records are not checked. At most one row group is in memory; `mmdora prep` writes row groups of about 32 MB.

    Args:
        path: the file, or its name in errors if it is given as `file`.
        file: the file, opened for reading.

    Raises:
        MmdoraError: if `mmdora prep --pack` did not write this file. `mmdora prep messages` reads other Parquet files.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path if file is None else file) as source:
            if missing := set(COLUMNS) - set(source.schema_arrow.names):
                raise MmdoraError(
                    f"{path}: no file that `mmdora prep --pack` wrote (no column {min(missing)!r}); "
                    f"`mmdora prep messages --in {path}` makes records of chats with images"
                )
            number = 0
            for batch in source.iter_batches(batch_size=ROWS, columns=list(COLUMNS)):
                for row in batch.to_pylist():
                    yield _record(row, f"{path}: row {number}")
                    number += 1
    except (pa.ArrowException, OSError) as error:
        raise MmdoraError(f"{path}: not a readable Parquet file ({' '.join(str(error).split())[:200]})") from None


def _record(row: dict[str, Any], where: str) -> tuple[Record, list[bytes]]:
    try:
        pictures = row["images"]
        record: Record = {
            "id": row["id"],
            "messages": parse_line(row["messages"].encode()),
            "images": [picture["path"] for picture in pictures],
            "meta": parse_line(row["meta"].encode()),
        }
        files = [picture["bytes"] for picture in pictures]
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise MmdoraError(f"{where}: not as `mmdora prep --pack` writes it ({error})") from None
    if not all(isinstance(data, bytes) for data in files):
        raise MmdoraError(f"{where}: an image without its file; pack the records anew")
    return record, files
