"""Opens the data that a run learns from and is evaluated on: one source, or one per task."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from typing import Any

from torch.utils.data import Dataset, Subset

from mmdora.batches.fit import Rows, fit
from mmdora.batches.packing import Packs
from mmdora.batches.shards import Shards
from mmdora.batches.stream import BUFFER, Stream, admit
from mmdora.batches.tasks import TaskRows
from mmdora.config import RunConfig, TaskData
from mmdora.families import Family
from mmdora.families.boxes import boxed
from mmdora.files import sha256
from mmdora.records.reader import Records, read_records
from mmdora.train.check import check_apart
from mmdora.train.early_stopping import Answers
from mmdora.train.processes import Processes


@dataclass(frozen=True)
class TaskFiles:
    """The files of a run, or of one of its tasks, opened."""

    settings: TaskData
    train: Records | Shards
    held_out: Records | None


Sources = Mapping[str, TaskFiles]
ONLY = ""  # The name of the only source in `Data.sources` if there are no tasks.


def read_sources(config: RunConfig) -> Sources:
    """Open every file.

    Raises:
        MmdoraError: if a file holds no records, or if records are both held out and trained on.
    """
    data, sources = config.data, {}
    for name, settings in config.data.sources.items():
        held_out = read_records(settings.eval, settings.images) if settings.eval else None
        if data.stream:
            # A stream cannot be compared with the held-out records beforehand; `admit` does it row by row.
            train: Records | Shards = Shards(settings.train, settings.images)
        else:
            train = read_records(settings.train, settings.images, max_turns=data.max_turns)
            if held_out is not None:
                check_apart(train, held_out, pieces=data.max_turns is not None)
        sources[name] = TaskFiles(settings, train, held_out)
    return sources


def facts_of(config: RunConfig, sources: Sources, processes: Processes) -> dict[str, Any]:
    """Facts, besides the config, that the order of the rows depends on: fingerprints of the files, and more."""
    template = config.data.template
    facts: dict[str, Any] = {"data": {} if template is None else {str(template): sha256(template)}}
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
    """The rows to learn that are within the length limit."""
    data, seed = config.data, config.training.seed
    parts: dict[str, Rows] = {}
    for name, source in sources.items():
        if name != ONLY:
            family.check_task(name)
        if isinstance(source.train, Shards):
            return _stream(source, source.train, family, config, processes)
        parts[name] = fit(source.train, family, data.max_length, data.too_long, data.boxes)
    if data.tasks is None:
        return parts[ONLY]
    return TaskRows(parts, [name for name, source in sources.items() if source.settings.soft_answers], seed)


def held_out_of(sources: Sources, family: Family, config: RunConfig) -> Any:
    """The rows whose loss is measured; with several tasks, name of a task -> its rows; None if there are none."""
    held_out = {name: _held_out(name, source, family, config) for name, source in sources.items() if source.held_out}
    return held_out.get(ONLY, held_out or None)


def answers_of(sources: Sources, processor: Any, config: RunConfig) -> dict[str, Answers]:
    """Prefix of metrics -> the records that are answered at each evaluation."""
    count, answers = config.data.eval_generate_rows, {}
    for name, source in sources.items():
        if source.held_out is None or count is None:
            continue
        held_out = boxed(processor, source.held_out, config.data.boxes)
        records = [held_out[i] for i in range(min(count, len(held_out)))]
        answers[f"eval_{name}" if name else "eval"] = Answers(
            processor, records, source.settings.eval_task, config.training.batch_size
        )
    return answers


def describe(rows: Rows | TaskRows | Stream, packs: Packs | None, config: RunConfig) -> str:
    """A line that describes the rows, with the share of each task."""
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


def _stream(source: TaskFiles, shards: Shards, family: Family, config: RunConfig, processes: Processes) -> Stream:
    data = config.data
    apart: frozenset[str] = frozenset()
    contents: frozenset[int] = frozenset()
    if source.held_out is not None:
        apart = frozenset(map(str, source.held_out.ids))
        # Below different roots, images of the same name may differ, so contents can only be compared below the same.
        if source.held_out.root.resolve() == shards.root.resolve():
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


def _held_out(name: str, source: TaskFiles, family: Family, config: RunConfig) -> Dataset[Any]:
    assert source.held_out is not None
    rows, limit = fit(source.held_out, family, config.data.max_length, "drop", config.data.boxes), config.data.eval_rows
    chosen = rows if name == ONLY else TaskRows({name: rows})
    return chosen if limit is None else Subset(chosen, range(min(limit, len(chosen))))
