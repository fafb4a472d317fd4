"""What a run learns from and is evaluated on: one source, or one per task."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from typing import Any

from torch.utils.data import Dataset, Subset

from mmdora.batches.fit import Rows, fit
from mmdora.batches.packing import Packs
from mmdora.batches.stream import BUFFER, Shards, Stream, admit
from mmdora.batches.tasks import TaskRows
from mmdora.config import RunConfig, TaskData
from mmdora.families import Family
from mmdora.files import sha256
from mmdora.records.reader import Records, read_records
from mmdora.train.check import check_apart
from mmdora.train.early_stopping import Answers
from mmdora.train.processes import Processes


@dataclass(frozen=True)
class Source:
    """The files of a run, or of one of its tasks, opened."""

    settings: TaskData
    train: Records | Shards
    held_out: Records | None


Sources = Mapping[str, Source]
ONLY = ""  # `Data.sources`' name of a source that is not one of several tasks


def read_sources(config: RunConfig) -> Sources:
    """Open every file.

    Raises:
        MmdoraError: for a file that holds no records, or records that are held out and trained on.
    """
    data, found = config.data, {}
    for name, settings in config.data.sources.items():
        held_out = read_records(settings.eval, settings.images) if settings.eval else None
        if data.stream:
            train: Records | Shards = Shards(settings.train, settings.images)  # apart or not shows as the rows come
        else:
            train = read_records(settings.train, settings.images, max_turns=data.max_turns)
            if held_out is not None:
                check_apart(train, held_out, pieces=data.max_turns is not None)
        found[name] = Source(settings, train, held_out)
    return found


def facts_of(config: RunConfig, sources: Sources, processes: Processes) -> dict[str, Any]:
    """What the order of the rows depends on, besides the config."""
    facts: dict[str, Any] = {"data": {}}
    for source in sources.values():
        if source.settings.eval is not None:
            facts["data"][str(source.settings.eval)] = sha256(source.settings.eval)
        if isinstance(source.train, Records):
            facts["data"][str(source.settings.train)] = sha256(source.train.path)
        else:
            source.train.check(config.data.max_turns)
            facts["data"][str(source.settings.train)] = source.train.fingerprint
            facts["stream"] = {"processes": processes.count, "datasets": version("datasets")}
    return facts


def rows_of(sources: Sources, family: Family, config: RunConfig, processes: Processes) -> Rows | TaskRows | Stream:
    """The rows to learn, within the limit of length."""
    data, seed = config.data, config.training.seed
    parts: dict[str, Rows] = {}
    for name, source in sources.items():
        if name != ONLY:
            family.check_task(name)
        if isinstance(source.train, Shards):
            return _stream(source, source.train, family, config, processes)
        parts[name] = fit(source.train, family, data.max_length, data.too_long)
    if data.tasks is None:
        return parts[ONLY]
    return TaskRows(parts, [name for name, source in sources.items() if source.settings.soft_answers], seed)


def held_out_of(sources: Sources, family: Family, config: RunConfig) -> Any:
    """The rows whose loss is measured, by task where there are several; None without any."""
    found = {name: _held_out(name, source, family, config) for name, source in sources.items() if source.held_out}
    return found.get(ONLY, found or None)


def answers_of(sources: Sources, processor: Any, config: RunConfig) -> dict[str, Answers]:
    """What is answered at each evaluation, by the prefix of its metrics."""
    count, found = config.data.eval_generate_rows, {}
    for name, source in sources.items():
        if source.held_out is None or count is None:
            continue
        records = [source.held_out[i] for i in range(min(count, len(source.held_out)))]
        found[f"eval_{name}" if name else "eval"] = Answers(
            processor, records, source.settings.eval_task, config.training.batch_size
        )
    return found


def describe(rows: Rows | TaskRows | Stream, packs: Packs | None, config: RunConfig) -> str:
    """A line on the rows, and one per task."""
    if isinstance(rows, Stream):
        files, buffer = len(rows.shards.files), config.data.shuffle_buffer or BUFFER
        return f"data: a stream of {files} {'file' if files == 1 else 'files'}, shuffled {buffer:,} rows at a time"
    images = int(rows.has_image.sum())
    text = f"data: {len(rows)} rows, {images} with images, {len(rows) - images} text only"
    if rows.dropped or rows.shrunk:
        text += f"; over {config.data.max_length} tokens: {rows.dropped} dropped, {rows.shrunk} shrunk"
    if packs is not None:
        share = packs.lengths.mean() / packs.capacity
        text += f"; packed into {len(packs)} of {packs.capacity} tokens, {share:.0%} full"
    if isinstance(rows, TaskRows):
        shares = (f"{name} {len(part):,} ({len(part) / len(rows):.0%})" for name, part in rows.by_name.items())
        text += f"; tasks: {', '.join(shares)}"
    return text


def _stream(source: Source, shards: Shards, family: Family, config: RunConfig, processes: Processes) -> Stream:
    data = config.data
    apart: frozenset[str] = frozenset()
    contents: frozenset[int] = frozenset()
    if source.held_out is not None:
        apart = frozenset(map(str, source.held_out.ids))
        if source.held_out.root.resolve() == shards.root.resolve():  # else equal names may be different images
            contents = frozenset(source.held_out.contents.to_pylist())
    return Stream(
        shards,
        partial(admit, family=family, data=data, apart=apart, contents=contents),
        buffer=data.shuffle_buffer or BUFFER,
        seed=config.training.seed,
        process=processes.index,
        processes=processes.count,
        max_turns=data.max_turns,
    )


def _held_out(name: str, source: Source, family: Family, config: RunConfig) -> Dataset[Any]:
    assert source.held_out is not None
    rows, limit = fit(source.held_out, family, config.data.max_length, "drop"), config.data.eval_rows
    found = rows if name == ONLY else TaskRows({name: rows})
    return found if limit is None else Subset(found, range(min(limit, len(found))))
