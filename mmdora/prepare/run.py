"""One run of `mmdora prep NAME`: rows through the workers into files, card and report."""

from __future__ import annotations

import multiprocessing
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

from tqdm import tqdm

from mmdora.env import usable_cores
from mmdora.errors import MmdoraError
from mmdora.outputs.stop import leave_to_parent
from mmdora.prepare.convert import Bad, Job, Made, convert, line_of, shape_of
from mmdora.prepare.dataset import Dataset
from mmdora.prepare.draw import check, draw
from mmdora.prepare.inputs import ImageInputs, Inputs, OwnInputs, VideoInputs
from mmdora.prepare.read import OfficialRow, Reader
from mmdora.prepare.record import RecordDraft
from mmdora.prepare.writer import Writer
from mmdora.records.record import Record, check_record

CHUNK_ROWS = 256
"""How many rows a worker process is given at a time: enough that handing them over costs little."""
CHUNK_BYTES = 1 << 23
"""A chunk of large rows ends after this many bytes of the official files, which bounds what waits in memory."""

Converted = tuple[list[OfficialRow], list[Made | Bad]]


def prepare(dataset: Dataset, out: Path, inputs: Inputs) -> dict[str, int]:
    """Turn official files into `SPLIT.jsonl` (or .parquet), `dataset_card.json` and `report.html` below `out`.

    Memory does not grow with the number of rows. The files get their names when all of them are complete; another
    run into the same folder adds its splits, or replaces those of the same name.

    Args:
        dataset: one that reads official files.
        inputs: of the kind `dataset.files.inputs`.

    Returns:
        The number of records per split.

    Raises:
        MmdoraError: a file is missing; a row is bad (unless `inputs.skip_bad`); no usable row is left.
    """
    if dataset.files is None:
        raise ValueError(f"{dataset.name} reads no official files; call `make`")
    files = dataset.files
    share, seed = (inputs.held_out, inputs.seed) if isinstance(inputs, OwnInputs) else (None, 0)
    if isinstance(inputs, OwnInputs):
        check(inputs)
    root = inputs.images if isinstance(inputs, ImageInputs) else None
    root = inputs.features if isinstance(inputs, VideoInputs) else root
    for path in [*inputs.files, *([root] if root else [])]:
        if not path.exists():
            raise MmdoraError(f"{path}: no such file or folder")
    pack = isinstance(inputs, ImageInputs) and inputs.pack
    job = Job(files.records, root, out, pack)
    passes = 1 if share is None else 2
    size = passes * sum(path.stat().st_size for path in inputs.files if path.is_file())
    with (
        Writer(out, dataset, pack=pack, unique=files.unique_ids, split=inputs.split, default=files.split) as writer,
        tqdm(total=size, desc=dataset.name, unit="B", unit_scale=True, disable=None) as bar,
        Reader(writer.scratch, bar.update) as reader,
    ):
        drawn = None
        if share is not None:
            (writer.scratch / "draw").mkdir()
            with Reader(writer.scratch / "draw", bar.update) as first:
                drawn = draw(files.rows(first, inputs), job, share, seed, skip_bad=inputs.skip_bad)
        chunks = _chunks(reader, files.rows(reader, inputs))
        for chunk, done in _converted(job, chunks, inputs.workers or usable_cores()):
            writer.take(chunk, done, skip_bad=inputs.skip_bad, drawn=drawn)
            bar.set_postfix(records=f"{writer.records:,}")
        how = {} if share is None else {"held_out": share, "seed": seed}
        return writer.finish(reader.files, root, reader.unmatched, how)


def write_splits(
    out: Path, dataset: Dataset, make: Callable[[], Mapping[str, Iterable[Record | RecordDraft]]]
) -> dict[str, int]:
    """Write records that were made without official files, with card and report, as `prepare` does.

    Args:
        make: gives the records by split; it may write their images below `out`, which is kept from other runs by then.

    Raises:
        MmdoraError: something is not a record, or two records of a split have the same id.
    """
    with Writer(out, dataset) as writer:
        for split, records in make().items():
            for made in records:
                record = check_record(made, f"record {made['id']}")
                if not writer.add(Made(0, split, record["id"], line_of(record), shape_of(record), []), split):
                    raise MmdoraError(f"{out}: two records of the id {record['id']!r} in {split}")
        return writer.finish([], None, 0)


def _chunks(reader: Reader, rows: Iterator[OfficialRow]) -> Iterator[list[OfficialRow]]:
    chunk: list[OfficialRow] = []
    begun = reader.read
    for row in rows:
        chunk.append(row)
        if len(chunk) == CHUNK_ROWS or reader.read - begun > CHUNK_BYTES:
            yield chunk
            chunk, begun = [], reader.read
    if chunk:
        yield chunk


def _converted(job: Job, chunks: Iterator[list[OfficialRow]], workers: int) -> Iterator[Converted]:
    """Every chunk of rows with what became of it, in order; only a few chunks are in memory at a time."""
    begun = [chunk for chunk in (next(chunks, None), next(chunks, None)) if chunk]
    if workers < 2 or len(begun) < 2:
        for chunk in begun:
            yield chunk, convert(job, chunk)
        for chunk in chunks:
            yield chunk, convert(job, chunk)
        return
    context = multiprocessing.get_context("spawn")  # a process that was forked beside threads can hang
    waiting: deque[tuple[list[OfficialRow], Future[list[Made | Bad]]]] = deque()
    with ProcessPoolExecutor(workers, context, initializer=leave_to_parent) as pool:
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
        except BrokenProcessPool:
            raise MmdoraError(
                "a worker process was ended from outside, by a signal or for want of memory; --workers 1 does without"
            ) from None
        finally:
            # Futures that are cancelled one by one can leave the pool's thread waiting for a result for ever: it drops
            # the last of them only after it has seen that the pool ends (CPython 3.11).
            pool.shutdown(cancel_futures=True)
