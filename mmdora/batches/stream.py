"""Reads records one after another from their files, for data too large for the disk; only a few rows are in memory.

Which rows a process learns, and in which order, depends on the files, the seed, the buffer, the number of processes and
the version of `datasets`, which shuffles and splits. To resume, a run reads the rows that it has already learned once
more, without decoding their images, because the buffer of rows would be too large for a checkpoint.
"""

from __future__ import annotations

import glob
import hashlib
import io
import re
from collections.abc import Callable, Collection, Iterator
from functools import cached_property
from itertools import count, islice
from pathlib import Path
from typing import IO, Any

import fsspec
from torch.utils.data import Dataset

from mmdora.batches.lengths import shorten
from mmdora.config import Data
from mmdora.errors import MmdoraError
from mmdora.families import Family
from mmdora.families.family import naming
from mmdora.files import ordinary, sha256
from mmdora.records import packed
from mmdora.records.parse import numbered_lines, record_of
from mmdora.records.record import check_record, content_of
from mmdora.records.row import Row, changed, row_of
from mmdora.records.turns import answer_text, split_turns

KINDS = (".jsonl", packed.SUFFIX)
REMOTE = ("hf", "https")
BUFFER = 1000  # Rows in the shuffle buffer. All of them are in memory, with their images if those are packed.

Admit = Callable[[Row], Row | None]


class Shards:
    """The files of a stream, sorted by name; `root` is the folder that their image paths start from.

    Args:
        place: a file, a folder, or a pattern; on disk, or at `hf://` or `https://`.
        images: the root; by default the folder that all the files are in.

    Raises:
        MmdoraError: if there is no file, if one is neither JSONL nor packed Parquet, or if the root is not known.
    """

    def __init__(self, place: Path | str, images: Path | None = None):
        self.place = re.sub(rf"^({'|'.join(REMOTE)}):/+", r"\1://", str(place))  # Path turns "//" into "/".
        remote = self.place.startswith(tuple(f"{protocol}://" for protocol in REMOTE))
        self.files = _listed(self.place) if remote else [str(path) for path in _found(Path(self.place))]
        if not self.files:
            raise MmdoraError(f"{self.place}: no file of records for a stream ({' or '.join(KINDS)})")
        for name in self.files:
            if not name.endswith(KINDS):
                raise MmdoraError(f"{name}: a stream reads {' and '.join(KINDS)} files; mmdora prep makes them")
        folders = {Path(name).parent for name in self.files}
        if images is None and (remote or len(folders) > 1) and any(name.endswith(KINDS[0]) for name in self.files):
            raise MmdoraError(f"{self.place}: set data.images to the folder that the image paths start from")
        self.root = images if images is not None else folders.pop()
        if images is not None and not images.is_dir():
            raise MmdoraError(f"{images}: the images root is not a folder")

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the files' names and sizes, and of the content of the files on disk."""
        digest = hashlib.sha256()
        for name in self.files:
            protocol, remote, _ = name.rpartition("://")
            size = fsspec.filesystem(protocol).size(name) if remote else Path(name).stat().st_size
            digest.update(f"{Path(name).name}\0{size}\0".encode())
            if not remote:
                digest.update(bytes.fromhex(sha256(Path(name))))
        return digest.hexdigest()

    def check(self, max_turns: int | None = None) -> None:
        """Read the first record of each file on disk (of remote files, the first one only).

        Raises:
            MmdoraError: if that record cannot be used, or if the file has none.
        """
        local = [name for name in self.files if "://" not in name]
        for name in local or self.files[:1]:
            if next(rows_of([name], self.root, max_turns), None) is None:
                raise MmdoraError(f"{name}: holds no records")


class Stream(Dataset[Row]):
    """The rows of one process, endlessly: after the last row of its share the stream is shuffled anew.

    In each pass every row comes once, in one process. If the number of files can be divided by the number of processes,
    each process reads whole files; else each takes every n-th row of all of them. The main process reads and shuffles.
    It hands the rows themselves to loader processes (a row is its own index in this dataset), so that the number of
    loader processes does not change the order.

    Args:
        admit: a function that gives the row to learn, or None to leave the row out.
        buffer: number of rows that are shuffled together; the order of the files is shuffled too.
    """

    def __init__(
        self,
        shards: Shards,
        admit: Admit,
        *,
        buffer: int,
        seed: int,
        process: int = 0,
        processes: int = 1,
        max_turns: int | None = None,
    ):
        from datasets import IterableDataset
        from datasets.distributed import split_dataset_by_node

        source = {"files": shards.files, "root": shards.root, "max_turns": max_turns}
        rows: Any = IterableDataset.from_generator(rows_of, gen_kwargs=source)
        self.shards, self.admit, self.process, self.processes = shards, admit, process, processes
        self._rows: Any = split_dataset_by_node(rows.shuffle(seed=seed, buffer_size=buffer), process, processes)

    def __getitem__(self, index: Any) -> Row:
        """The row, which is its own index."""
        return index

    def __iter__(self) -> Iterator[Row]:
        for number in count():
            rows = self.one_pass(number)
            first = next(rows, None)
            if first is None:
                who = f"process {self.process} of {self.processes} gets" if self.processes > 1 else "holds"
                raise MmdoraError(f"{self.shards.place}: {who} no row to learn; give more, or raise data.max_length")
            yield first
            yield from rows

    def one_pass(self, number: int) -> Iterator[Row]:
        """Every admitted row of this process's share, once."""
        self._rows.set_epoch(number)
        yield from (row for row in map(self.admit, self._rows) if row is not None)


class StreamBatches:
    """The micro-batches of a stream, for the loader: lists of rows, where `Batches` gives lists of indices.

    As in `Batches`, micro-batch 0 of process 0 comes first, then that of process 1. The micro-batches of other
    processes are empty lists here, because nobody reads them. The whole run counts as one epoch.

    Args:
        size: rows of a micro-batch.
        rounds: micro-batches of each process in the run.
        remembered: number of micro-batches whose ids are kept; it has to cover those that loaders read ahead.
    """

    def __init__(self, stream: Stream, size: int, rounds: int, remembered: int):
        self.stream, self.size, self.rounds, self.remembered = stream, size, rounds, remembered
        self.ids: dict[int, list[str]] = {}  # number of the micro-batch -> ids of its rows

    def set_epoch(self, epoch: int) -> None:
        """Do nothing, because the stream itself counts its passes."""

    def __len__(self) -> int:
        return self.rounds * self.stream.processes

    def __iter__(self) -> Iterator[list[Row]]:
        rows = iter(self.stream)
        for number in range(self.rounds):
            batch = list(islice(rows, self.size))
            self.ids[number] = [row["id"] for row in batch]
            self.ids.pop(number - self.remembered, None)
            yield from (batch if process == self.stream.process else [] for process in range(self.stream.processes))


def admit(
    row: Row, *, family: Family, data: Data, apart: Collection[str], contents: Collection[int] = ()
) -> Row | None:
    """Give the row as it is learned, or None to leave it out. `fit` decides the same for rows that are all known.

    Args:
        data: gives the length limit, the policy for longer rows, and `max_turns`. If rows are pieces of a conversation,
            their ids end in "#" and a number.
        apart: ids of the records that are held out for evaluation.
        contents: their contents, as `content_of` gives them. The content of a row that is a piece is not known.

    Raises:
        MmdoraError: naming the record, if it is held out, if the family cannot learn it, or if it is too long.
    """
    name = row["id"]
    if name in apart or (data.max_turns is not None and re.sub(r"#\d+$", "", name) in apart):
        raise MmdoraError(f"data.eval: the stream holds its record {name!r} too; hold out other records")
    if contents and content_of(row) in contents:
        raise MmdoraError(
            f"data.eval: holds the messages and images of record {name!r} of the stream; take it out of one"
        )
    with naming(row):
        family.check_row(row)
        family.check_pictures(row["messages"], len(row["images"]))
    if data.max_length is None:
        return row
    length = int(family.count_tokens([row])[0])
    if length <= data.max_length:
        return row
    if data.too_long == "drop":
        return None
    shrinks = data.too_long == "shrink"
    kept, _ = shorten(family, data.max_length, row) if shrinks else (0, 0)
    if not kept:
        more = " with its first turn alone (images are never cut)" if shrinks else f" ({length} tokens)"
        other = "drop" if shrinks else "drop or shrink"
        raise MmdoraError(
            f"record {name} is over data.max_length {data.max_length}{more}; raise it, or set data.too_long to {other}"
        )
    return changed(row, messages=row["messages"][:kept])


def rows_of(files: list[str], root: Path, max_turns: int | None) -> Iterator[Row]:
    """Yield the rows of the files, one after another.

    Raises:
        MmdoraError: if a row is no record or has no answer, or if a file cannot be read to its end.
    """
    for name in files:
        try:
            for row, where in _rows(name, root):
                for piece in split_turns(row, max_turns):
                    if not answer_text(piece).strip():
                        raise MmdoraError(f"{where}: an empty last answer, so nothing to learn; leave it out")
                    yield piece
        except MmdoraError:
            raise
        except Exception as error:  # Each kind of remote store raises errors of its own.
            reason = getattr(error, "strerror", None) or f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
            raise MmdoraError(f"{name}: cannot be read ({reason}); when it can, go on with --resume") from None


def _rows(name: str, root: Path) -> Iterator[tuple[Row, str]]:
    with _opened(name) as file:
        if name.endswith(packed.SUFFIX):
            for number, (record, images) in enumerate(packed.read_packed(name, file)):
                where = f"{name}: row {number}"
                yield row_of(check_record(record, where), root, images), where
        else:
            for line, where in numbered_lines(file, name):
                yield row_of(record_of(line, where), root), where


def _opened(name: str) -> IO[bytes]:
    protocol, remote, _ = name.partition("://")
    if not remote:
        return open(name, "rb")
    # Remote files are wrapped because the readline of fsspec ignores the limit on a line's length.
    return io.BufferedReader(fsspec.filesystem(protocol).open(name, "rb"))


def _found(path: Path) -> list[Path]:
    """The files of records at a path on disk."""
    if path.is_dir():
        return sorted(file for file in path.iterdir() if file.suffix in KINDS)
    patterned = not path.exists() and glob.has_magic(str(path))
    names = sorted(glob.glob(str(path), recursive=True)) if patterned else [path]
    return [ordinary(Path(name), "file of records") for name in names]


def _listed(address: str) -> list[str]:
    """The files of records that a remote store lists."""
    try:
        store = fsspec.filesystem(address.partition("://")[0])
        if address.endswith(KINDS) and not glob.has_magic(address):
            return [address]
        names = store.glob(address) if glob.has_magic(address) else store.ls(address, detail=False)
        return sorted(store.unstrip_protocol(name) for name in names if name.endswith(KINDS))
    except ImportError as error:
        raise MmdoraError(f"{address}: {error}; pip install 'fsspec[http]'") from None
    except Exception as error:  # Each kind of remote store raises errors of its own.
        reason = " ".join(str(error).split())[:200]
        raise MmdoraError(f"{address}: cannot be listed ({type(error).__name__}: {reason})") from None
