"""A dataset as one object: what the command line, the card, the evaluation and the tests know about it.

Every module of `mmdora.data_prep` has one, `DATASET`, and `mmdora.data_prep.table` lists them all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, Generic, TypeVar

from mmdora.prepare.inputs import Inputs
from mmdora.prepare.read import OfficialRow, Reader
from mmdora.prepare.record import RecordDraft
from mmdora.records.record import RecordFacts

Given = TypeVar("Given", bound=Inputs)


@dataclass(frozen=True)
class Origin:
    """Where a dataset comes from; it goes into the card of every folder of its records.

    Attributes:
        licence: as its owners state it, or a word on whose data it is. A card has it for its owners' files only.
        source: where the format of its files was read.
        unverified: what could not be compared with an official file, a note each.
        owned: patterns of the names of the files that its owners published, for a layout in which people also have data
            of their own; empty for a layout that is nobody's dataset. None: all files are its owners'.
    """

    licence: str
    source: str
    unverified: tuple[str, ...] = ()
    owned: tuple[str, ...] | None = None

    def owns(self, file: str) -> bool:
        """Whether a file of this name is one that its owners published."""
        return self.owned is None or any(fnmatch(file, pattern) for pattern in self.owned)


@dataclass(frozen=True)
class OfficialFiles(Generic[Given]):
    """How the files that a dataset's owners publish become records.

    Attributes:
        inputs: the arguments that the command takes: `Inputs` (text), `ImageInputs` or `VideoInputs`.
        rows: opens the files and gives their rows; `prepare.rows` and `prepare.joins` have the usual ones.
        records: makes the records of one row. It must be a function of a module, because the worker processes
            import it. It raises `MmdoraError` for a row that cannot be used; a missing field (`KeyError`) and a
            field of another kind (`TypeError`, `ValueError`) are understood too.
        unique_ids: ids are the keys of the result file, so a second row with the same id is a bad row; False
            accepts such rows and counts them.
        split: the split of records where neither the record, nor `--split`, nor the name of the file tells it.
    """

    inputs: type[Given]
    rows: Callable[[Reader, Given], Iterator[OfficialRow]]
    records: Callable[[OfficialRow], Iterable[RecordDraft]]
    unique_ids: bool = True
    split: str | None = None


def _nothing_needed() -> None:
    """Most result files need no package beyond those that are installed."""


@dataclass(frozen=True)
class ResultFile:
    """The file of answers that a dataset's official scorer or server reads.

    Attributes:
        name: its name in the folder of an evaluation.
        write: takes records, a text for each record's id, and the path to write; returns the path. It raises
            `MmdoraError` for a record without a text, and `KeyError` for one whose `meta` lacks a field.
        check: raises `MmdoraError` if a package is missing that `write` needs, so that this is known before hours
            of generation.
    """

    name: str
    write: Callable[[Iterable[RecordFacts], Mapping[str, str], Path], Path]
    check: Callable[[], None] = _nothing_needed


@dataclass(frozen=True)
class Dataset:
    """One dataset that `mmdora prep NAME` turns into records.

    Attributes:
        name: of the command, and in the card.
        summary: what it is, in at most 60 characters: one line of `mmdora prep --help`.
        details: what to give and what is written, for `mmdora prep NAME --help`.
        example: a command that works, without the `mmdora prep NAME` it begins with.
        origin: licence and source.
        files: how its official files are converted (see `run.prepare`); None if `make` is given.
        make: makes the records without any official file; its parameters, the first of which is the folder `out`,
            are those of the command. It returns the number of records per split.
        results: None where there is no official result file.

    Raises:
        ValueError: a text is empty, the summary is too long, or not exactly one of `files` and `make` is given.
    """

    name: str
    summary: str
    details: str
    example: str
    origin: Origin
    files: OfficialFiles[Any] | None = None
    make: Callable[..., dict[str, int]] | None = None
    results: ResultFile | None = None

    def __post_init__(self) -> None:
        texts = (self.name, self.summary, self.details, self.example, self.origin.licence, self.origin.source)
        if not all(texts) or len(self.summary) > 60:
            raise ValueError(f"dataset {self.name!r}: an empty text, or a summary of more than 60 characters")
        if (self.files is None) == (self.make is None):
            raise ValueError(f"dataset {self.name!r}: give either `files` or `make`")

    @property
    def command(self) -> str:
        """The command that prepares it, without arguments."""
        return f"mmdora prep {self.name}"
