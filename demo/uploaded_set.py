"""Reads questions that a visitor uploads: a ZIP of one table and its pictures, or a table alone. Without Gradio.

Nothing is unpacked to the disk. A picture is looked up among the names in the ZIP, so no name leads anywhere else.
"""

from __future__ import annotations

import posixpath
import tempfile
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any, overload

from mmdora.data_prep import folder
from mmdora.demo.pictures import MAX_UPLOAD, MAX_UPLOAD_PIXELS
from mmdora.demo.question_sets import QuestionSet
from mmdora.errors import MmdoraError
from mmdora.evaluate.tasks import task_of
from mmdora.prepare.read import OfficialRow, Reader
from mmdora.records.images import read_header
from mmdora.records.json_stream import parse_line
from mmdora.records.record import Record, check_record
from mmdora.records.row import Row, row_of

TABLES = (".csv", ".tsv", ".jsonl", ".json")
MAX_QUESTIONS = 300  # Questions of one upload: more than anybody reads, and minutes of a small model's time.
MAX_TABLE = 2 * 10**6  # Bytes of a table of so many questions.
MAX_ENTRIES = 4 * MAX_QUESTIONS  # Entries of a ZIP: two pictures for each question, and the folders of both.


@dataclass(frozen=True)
class ZippedRows(Sequence[Row]):
    """Rows whose pictures are read from a ZIP when the row is asked for.

    Attributes:
        records: the records, whose images are names in the ZIP.
        archive: the ZIP; None if there are no pictures.
    """

    records: Sequence[Record]
    archive: Path | None

    def __len__(self) -> int:
        return len(self.records)

    @overload
    def __getitem__(self, index: int) -> Row: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Row]: ...
    def __getitem__(self, index: int | slice) -> Row | Sequence[Row]:
        if isinstance(index, slice):
            return ZippedRows(self.records[index], self.archive)
        record = self.records[index]
        if not record["images"]:
            return row_of(record, Path())
        if self.archive is None or not self.archive.is_file():
            raise MmdoraError("The upload is no longer on the server; upload it again.")
        with _opened(self.archive) as archive:
            return row_of(record, Path(), [_content(archive, name) for name in record["images"]])


def read_upload(path: Path) -> QuestionSet:
    """Read the questions of an upload, and check all of it.

    Raises:
        MmdoraError: if it is neither a ZIP nor a table, is too large, a row is no question or names a picture that is
            not there, or a picture cannot be used. The message does not tell where the server keeps the file.
    """
    if path.stat().st_size > MAX_UPLOAD:
        raise MmdoraError(f"{path.name}: larger than {MAX_UPLOAD // 10**6} MB")
    task = task_of("exact")
    if path.suffix.lower() in TABLES:
        records = _records(path.read_bytes(), path.name, "")
        if named := next((record for record in records if record["images"]), None):
            raise MmdoraError(
                f"{path.name}: record {named['id']} names the picture {named['images'][0]!r:.80}; upload one ZIP that "
                "holds the table and its pictures"
            )
        return QuestionSet(path.name, task, ZippedRows(records, None))
    if not zipfile.is_zipfile(path):
        raise MmdoraError(f"{path.name}: neither a ZIP nor a table ({', '.join(TABLES)})")
    with _opened(path) as archive:
        names = [entry.filename for entry in archive.infolist()[: MAX_ENTRIES + 1] if not entry.is_dir()]
        if len(archive.infolist()) > MAX_ENTRIES:
            raise MmdoraError(f"{path.name}: holds over {MAX_ENTRIES:,} entries")
        kept = [name for name in names if not PurePosixPath(name).parts[0].startswith("__MACOSX")]
        tables = [name for name in kept if PurePosixPath(name).suffix.lower() in TABLES]
        if len(tables) != 1:
            raise MmdoraError(f"{path.name}: holds {len(tables)} tables ({', '.join(TABLES)}); there has to be one")
        content = _content(archive, tables[0], MAX_TABLE)
        records = _records(content, PurePosixPath(tables[0]).name, posixpath.dirname(tables[0]))
        for name in dict.fromkeys(name for record in records for name in record["images"]):
            if name not in kept:
                raise MmdoraError(f"{path.name}: the picture {name!r:.80} is not in the ZIP")
            with _entry(archive, name, MAX_UPLOAD) as file:
                read_header(file, name, max_pixels=MAX_UPLOAD_PIXELS)
    return QuestionSet(path.name, task, ZippedRows(records, path))


def _records(content: bytes, name: str, beside: str) -> list[Record]:
    """The records of a table; the names of their pictures become those of the ZIP.

    Args:
        beside: folder of the table in the ZIP, from which the names in the table start.
    """
    if len(content) > MAX_TABLE:
        raise MmdoraError(f"{name}: the table is larger than {MAX_TABLE // 10**6} MB")
    records: list[Record] = []
    with tempfile.TemporaryDirectory() as scratch:
        table = Path(scratch) / f"table{PurePosixPath(name).suffix.lower()}"
        table.write_bytes(content)
        try:
            with Reader(Path(scratch)) as reader:
                for row in reader.rows(table):
                    if len(records) == MAX_QUESTIONS:
                        raise MmdoraError(f"the table has over {MAX_QUESTIONS} questions")
                    records += _of_row(row, f"row {row.number + 1}")
        except MmdoraError as error:
            raise MmdoraError(f"{name}: {str(error).replace(str(table), 'the table')}") from None
    if not records:
        raise MmdoraError(f"{name}: the table has no rows")
    for record in records:
        if record.get("videos"):  # Their paths would be looked for on the server.
            raise MmdoraError(f"{name}: record {record['id']} has a video; an uploaded set holds pictures only")
        record["images"] = [posixpath.normpath(posixpath.join(beside, image)) for image in record["images"]]
    return records


def _of_row(row: OfficialRow, where: str) -> Iterator[Record]:
    try:
        value: Any = row.value
        if isinstance(value, MmdoraError):
            raise value
        value = parse_line(value) if isinstance(value, bytes) else value
        if not isinstance(value, dict):
            raise MmdoraError(f"expected an object, found {type(value).__name__}")
        if "messages" in value:
            yield check_record(value, where)
        else:
            for draft in folder.records(row._replace(value=value)):
                facts = {key: draft[key] for key in ("id", "messages", "images", "meta")}
                yield check_record(facts, where)
    except MmdoraError as error:
        told = str(error)
        raise MmdoraError(told if told.startswith(where) else f"{where}: {told}") from None


def _opened(path: Path) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(path)
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        raise MmdoraError(f"{path.name}: a ZIP that cannot be read") from None


def _entry(archive: zipfile.ZipFile, name: str, most: int) -> IO[bytes]:
    try:
        if archive.getinfo(name).file_size > most:
            raise MmdoraError(f"{name!r:.80}: larger than {most // 10**6} MB")
        return archive.open(name)
    except (zipfile.BadZipFile, KeyError, RuntimeError, NotImplementedError, OSError, zlib.error):
        raise MmdoraError(f"{name!r:.80}: cannot be read from the ZIP (damaged, or locked by a password)") from None


def _content(archive: zipfile.ZipFile, name: str, most: int = MAX_UPLOAD) -> bytes:
    """The content of an entry; a ZIP's reader gives no more bytes than the entry declares."""
    with _entry(archive, name, most) as file:
        try:
            return file.read()
        except (zipfile.BadZipFile, zlib.error, EOFError, OSError):
            raise MmdoraError(f"{name!r:.80}: cannot be read from the ZIP (damaged)") from None
