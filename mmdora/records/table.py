"""Keeps the records of a file as a memory-mapped Arrow table, and reads the file again if the kept table is damaged.

`datasets` makes the table and names its folder after where the records come from. It does not notice bytes that were
changed afterwards, so a checksum lies beside the table.
"""

from __future__ import annotations

import errno
import json
import shutil
import tempfile
import warnings
import zlib
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from mmdora.errors import MmdoraError
from mmdora.files import write_whole

CHECKSUM = "checksum.json"
OF_A_DAMAGED_TABLE = (None, errno.ENOENT)
"""`errno` of an OSError that a damaged table gives; that of a full disk is another."""
FILES = "files"
"""The column with the contents of pictures."""


def open_table(
    path: Path,
    rows: Callable[..., Iterator[dict[str, Any]]],
    source: Mapping[str, Any],
    columns: Mapping[str, Any],
    batch: int | None = None,
) -> Any:
    """Open the table that was kept of a file if it is whole, else read the file; gives a `datasets.Dataset`.

    Args:
        path: the file, for the warning that its kept table is damaged.
        rows: yields the table's rows when called with the values of `source`.
        source: plain values that tell this table from all others.
        columns: the type of each column, as in `datasets.Features`.
        batch: rows that are in memory before they are written; by default as many as `datasets` takes.

    Raises:
        MmdoraError: raised by `rows`.
        OSError: there is no room for the table.
    """
    import datasets

    features, options = datasets.Features(dict(columns)), {} if batch is None else {"writer_batch_size": batch}
    make = partial(datasets.Dataset.from_generator, rows, features=features, gen_kwargs=dict(source), **options)
    datasets.disable_progress_bars()
    try:
        table: Any = _made(make)
        if (reason := _damage(table)) is None:
            return table
    except Exception as error:
        if _is_final(error):
            raise
        reason = f"{type(error).__name__}: {error}"
    warnings.warn(f"{path}: its kept table is damaged ({reason}); reading the file again", stacklevel=5)
    shutil.rmtree(_folder_of(rows, features, dict(source)), ignore_errors=True)
    table = _made(make)
    _damage(table)  # This writes the checksum.
    return table


def _damage(table: Any) -> str | None:
    """A phrase that says what is wrong with a table; None for one that is whole or has just been made.

    The checksum of a table that has none yet is written.
    """
    told = table.info.splits["train"].num_examples
    if len(table) != told:
        return f"{len(table)} rows instead of {told}"
    kept, counted = Path(table.cache_files[0]["filename"]).parent / CHECKSUM, {"crc32": checksum(table)}
    if not kept.exists():
        write_whole(kept, json.dumps(counted))
    elif kept.read_bytes() != json.dumps(counted).encode():
        return "its checksum is another"
    return None


def checksum(table: Any) -> int:
    """The CRC-32 of all bytes of a table but the contents of pictures, which are checked when they are decoded.

    Pictures may be hundreds of gigabytes, which would have to be read at every start.
    """
    value = 0
    for name in table.column_names:
        for chunk in table.data.column(name).chunks:
            buffers = chunk.buffers()
            for buffer in buffers[:-1] if name == FILES else buffers:  # The last one holds the contents.
                value = value if buffer is None else zlib.crc32(buffer, value)
    return value


def _folder_of(rows: Any, features: Any, source: dict[str, Any]) -> Path:
    """The folder where `datasets` keeps a table.

    It is asked of a builder with an empty folder, because one with the real folder reads what may be damaged there.
    """
    from datasets.config import HF_DATASETS_CACHE
    from datasets.io.generator import GeneratorDatasetInputStream

    with tempfile.TemporaryDirectory() as empty:
        stream: Any = GeneratorDatasetInputStream(rows, features=features, cache_dir=empty, gen_kwargs=source)
        return Path(HF_DATASETS_CACHE, Path(stream.builder.cache_dir).relative_to(empty))


def _made(make: Callable[[], Any]) -> Any:
    """The table; `datasets` wraps what is raised while it reads, and the cause is raised instead."""
    try:
        return make()
    except Exception as error:
        cause: BaseException | None = error
        while cause is not None and not _is_final(cause):
            cause = cause.__cause__ or cause.__context__
        raise cause or error from None


def _is_final(error: BaseException) -> bool:
    """Whether an error would only come again if the file were read again."""
    return isinstance(error, MmdoraError) or (isinstance(error, OSError) and error.errno not in OF_A_DAMAGED_TABLE)
