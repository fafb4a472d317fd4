"""One run of `mmdora prep NAME`: rows through the workers into files, card and report."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ProcessPoolExecutor
from pathlib import Path
from typing import Any

from tqdm import tqdm

from mmdora.errors import MmdoraError
from mmdora.prepare.convert import Bad, Job, Made, convert, line_of, shape_of
from mmdora.prepare.inputs import ImageInputs, Inputs, VideoInputs
from mmdora.prepare.read import Reader, Row
from mmdora.prepare.writer import Writer
from mmdora.records.record import Record, check_record

CHUNK_ROWS = 256
CHUNK_BYTES = 1 << 23

Converted = tuple[list[Row], list[Made | Bad]]


def run(
    out: Path,
    module: str,
    inputs: Inputs,
    rows: Callable[[Reader, list[Path]], Iterator[Row]],
    records: Callable[[Row], Iterable[Record]],
    *,
    unique: bool = True,
    split: str | None = None,
) -> dict[str, int]:
    """Write `SPLIT.jsonl` (or .parquet), `dataset_card.json` and `report.html` below `out`.

    Memory does not grow with the number of rows. Files get their names when all is done; a second
    run into the same folder adds or replaces its own splits.

    Args:
        module: name of the dataset's module, whose NAME, LICENCE, SOURCE and UNVERIFIED go into the card.
        rows: opens the official files.
        records: makes the records of a row; a function of a module, since workers import it. A record
            may have `split`, and images as `record.Picture`.
        unique: ids are the key of the result file, so a second row of the same id is a bad row; else it
            is only counted.
        split: where neither the record nor `inputs` nor a file's name tells it.

    Returns:
        The number of records per split.

    Raises:
        MmdoraError: for the first bad rows (unless `inputs.skip_bad`), and when no row is left.
    """
    root = inputs.images if isinstance(inputs, ImageInputs) else None
    root = inputs.features if isinstance(inputs, VideoInputs) else root
    for path in [*inputs.files, *([root] if root else [])]:
        if not path.exists():
            raise MmdoraError(f"{path}: no such file or folder")
    pack = isinstance(inputs, ImageInputs) and inputs.pack
    job = Job(records, root, out, pack)
    size = sum(path.stat().st_size for path in inputs.files if path.is_file())
    with (
        Writer(out, sys.modules[module], pack=pack, unique=unique, split=inputs.split, default=split) as writer,
        tqdm(total=size, desc=writer.about.NAME, unit="B", unit_scale=True, disable=None) as bar,
        Reader(writer.scratch, bar.update) as reader,
    ):
        chunks = _chunks(reader, rows(reader, inputs.files))
        for chunk, done in _converted(job, chunks, inputs.workers or _cores()):
            writer.take(chunk, done, skip_bad=inputs.skip_bad)
            bar.set_postfix(records=f"{writer.records:,}")
        return writer.finish(reader.files, root, reader.unmatched)


def write_splits(out: Path, about: Any, splits: Mapping[str, Iterable[Record]]) -> dict[str, int]:
    """Write records that are made here (their images below `out`) with card and report, as `run` does.

    Args:
        about: see `Writer`.
    """
    with Writer(out, about) as writer:
        for split, records in splits.items():
            for record in records:
                checked = check_record(record, f"record {record.get('id')}")
                if not writer.add(Made(0, split, checked["id"], line_of(record), shape_of(checked), []), split):
                    raise MmdoraError(f"{out}: two records of the id {checked['id']!r} in {split}")
        return writer.finish([], None, 0)


def _chunks(reader: Reader, rows: Iterator[Row]) -> Iterator[list[Row]]:
    chunk: list[Row] = []
    begun = reader.read
    for row in rows:
        chunk.append(row)
        if len(chunk) == CHUNK_ROWS or reader.read - begun > CHUNK_BYTES:
            yield chunk
            chunk, begun = [], reader.read
    if chunk:
        yield chunk


def _converted(job: Job, chunks: Iterator[list[Row]], workers: int) -> Iterator[Converted]:
    """Chunks with what became of them, in order; only a few are in memory at a time."""
    begun = [chunk for chunk in (next(chunks, None), next(chunks, None)) if chunk]
    if workers < 2 or len(begun) < 2:
        for chunk in begun:
            yield chunk, convert(job, chunk)
        for chunk in chunks:
            yield chunk, convert(job, chunk)
        return
    context = multiprocessing.get_context("spawn")  # a fork beside threads can hang
    waiting: deque[tuple[list[Row], Future[list[Made | Bad]]]] = deque()
    interrupt = (signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is this process's to answer
    with ProcessPoolExecutor(workers, context, initializer=signal.signal, initargs=interrupt) as pool:
        try:
            waiting.extend((chunk, pool.submit(convert, job, chunk)) for chunk in begun)
            for chunk in chunks:
                waiting.append((chunk, pool.submit(convert, job, chunk)))
                if len(waiting) > 2 * workers:
                    chunk, future = waiting.popleft()
                    yield chunk, future.result()
            while waiting:
                chunk, future = waiting.popleft()
                yield chunk, future.result()
        finally:
            for _, future in waiting:
                future.cancel()


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
