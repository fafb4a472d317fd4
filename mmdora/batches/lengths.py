"""Counts the tokens of every record once, on all cores, and keeps the counts beside the records' Arrow table."""

from __future__ import annotations

import hashlib
import json
import os
import warnings
import zipfile
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from filelock import FileLock
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from mmdora.env import usable_cores
from mmdora.errors import MmdoraError
from mmdora.families import Family
from mmdora.files import write_whole
from mmdora.records.reader import Records
from mmdora.records.row import Row, changed, videos_of
from mmdora.records.turns import MEDIA

CHUNK = 256  # Records per call of a measure: a batch for the tokenizer, and one message from a worker process.
FORMAT = 3  # Version of the kept files. Raise it when counting changes, so that old counts are not used.

Measure = Callable[[list[Row]], np.ndarray]


def token_counts(records: Records, family: Family) -> np.ndarray:
    """[rows] int32: tokens of each record, images included.

    The counts are kept on disk and used until the records, their root, the processor or transformers change. If only
    the size of an image changes, that is not noticed: touch the file of records to have them counted again.

    Raises:
        MmdoraError: naming the record, for an image that cannot be read.
    """
    return kept(records, f"tokens-{key_of(records, family)}", np.arange(len(records)), family.count_tokens)


def shortened(records: Records, family: Family, rows: np.ndarray, max_length: int) -> np.ndarray:
    """[len(rows), 2] int32: number of messages kept, and their tokens, after turns are left out from the end.

    Both numbers are 0 if the first turn alone is over `max_length`, or if the record would lose an image or video.

    Args:
        rows: [over] indices of the records that are over `max_length`.
    """
    measure = partial(_shorten, family, max_length)
    return kept(records, f"shrunk-{max_length}-{key_of(records, family)}", rows, measure)


def image_token_counts(records: Records, family: Family) -> np.ndarray:
    """[rows] int32: number of image tokens in each record; kept on disk like `token_counts`."""
    name = f"image-tokens-{key_of(records, family)}"
    return kept(records, name, np.arange(len(records)), family.count_image_tokens)


def _shorten(family: Family, max_length: int, rows: list[Row]) -> np.ndarray:
    return np.array([shorten(family, max_length, row) for row in rows], dtype=np.int32)


def shorten(family: Family, max_length: int, row: Row) -> tuple[int, int]:
    """Shorten one row: the number of messages kept and their tokens, as in `shortened`."""
    messages = row["messages"]
    answers = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
    for last in reversed(answers[:-1]):
        head = messages[: last + 1]
        seen = sum(part["type"] in MEDIA for message in head for part in message["content"])
        if seen != len(row["images"]) + len(videos_of(row)):
            break
        length = int(family.count_tokens([changed(row, messages=head)])[0])
        if length <= max_length:
            return last + 1, length
    return 0, 0


def kept(
    records: Records,
    name: str,
    rows: np.ndarray,
    measure: Measure,
    doing: str = "count tokens",
    source: Any = None,
) -> np.ndarray:
    """The measure of each of `rows`: read from disk if it is kept there, else computed on all cores and written.

    Args:
        name: file name beside the records' table; it must differ whenever something that the measure depends on does.
        rows: indices into `source`.
        doing: what the progress bar says.
        source: gives the row of an index; by default the records themselves.
    """
    file = records.cache / f"{name}.npz"
    with FileLock(f"{file}.lock"):  # Of several processes on one machine, the first counts and the others read.
        if file.exists():
            try:
                values = np.load(file)["values"]
                if len(values) == len(rows):
                    return values
                reason = f"{len(values)} rows instead of {len(rows)}"
            except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
                reason = error.__class__.__name__
            warnings.warn(f"{file}: what was kept cannot be read ({reason}); it is made again", stacklevel=3)
        values = _measured(records, rows, measure, doing, records if source is None else source)

        def write(partial_file: Path) -> None:
            with partial_file.open("wb") as target:  # Given a name instead of a file, numpy would append ".npz".
                np.savez_compressed(target, values=values)

        write_whole(file, write)
    return values


def key_of(records: Records, family: Family) -> str:
    """A hash of everything that a count, or a check, of these records depends on, for the file's name."""
    processor = family.processor
    tokenizer = json.loads(family.tokenizer.backend_tokenizer.to_str())
    del tokenizer["padding"], tokenizer["truncation"]  # These are left over from the last call and change no count.
    parts = [
        FORMAT,
        transformers.__version__,
        records.fingerprint,
        str(records.root.resolve()),
        type(processor).__name__,
        processor.to_dict() if hasattr(processor, "to_dict") else {},
        processor.chat_template,
        family.tokenizer.bos_token,
        tokenizer,
    ]
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:16]


class _Chunks(Dataset[Any]):
    """Measures `CHUNK` rows at a time. An error is returned, because a DataLoader would wrap it in a traceback."""

    def __init__(self, source: Any, rows: np.ndarray, measure: Measure):
        self.source, self.rows, self.measure = source, rows, measure

    def __len__(self) -> int:
        return -(-len(self.rows) // CHUNK)

    def __getitem__(self, number: int) -> np.ndarray | MmdoraError:
        rows = self.rows[number * CHUNK : (number + 1) * CHUNK]
        try:
            return self.measure([self.source[row] for row in rows])
        except MmdoraError as error:
            return error


def _measured(records: Records, rows: np.ndarray, measure: Measure, doing: str, source: Any) -> np.ndarray:
    chunks = _Chunks(source, rows, measure)
    workers = min(usable_cores(), len(chunks) // 8)  # A process with fewer than 8 chunks costs more than it saves.
    loader = DataLoader(
        chunks,
        batch_size=None,
        collate_fn=_as_it_is,
        num_workers=workers if workers > 1 else 0,
        worker_init_fn=_one_thread,
        # The loader draws a seed. Its own generator keeps the global one untouched, so that a run is the same whether
        # its counts were kept or not.
        generator=torch.Generator(),
    )
    parts = []
    with tqdm(total=len(rows), desc=doing, unit="row", unit_scale=True, delay=1) as bar:
        for part in loader:
            if isinstance(part, MmdoraError):
                raise MmdoraError(f"{records.path}: {part}")
            parts.append(part)
            bar.update(len(part))
    return np.concatenate(parts)


def _one_thread(worker: int) -> None:
    os.environ["TOKENIZERS_PARALLELISM"] = "false"


def _as_it_is(item: Any) -> Any:
    return item
