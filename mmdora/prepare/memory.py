"""Rows that a program holds in memory become records: a list of dicts, a `datasets.Dataset`, or another iterable.

A row is a record (`messages`, `images` and `videos`; `content` may be plain text in which `<image>` marks a picture),
or a question: `image`, `question`, `answer`. `id` and `meta` are kept; further columns are ignored. A picture is a
path, a PIL image, the bytes of a file, or `{bytes, path}` as `datasets` stores it; a video is a path.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Iterator, Mapping, Sized
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from PIL import Image

from mmdora.errors import MmdoraError
from mmdora.prepare.convert import Job, Made, convert
from mmdora.prepare.output import JsonlFile, ParquetFile
from mmdora.prepare.read import OfficialRow
from mmdora.prepare.record import Picture, RecordDraft, asked, conversation
from mmdora.prepare.run import CHUNK_ROWS
from mmdora.records.pixels import to_rgb
from mmdora.records.row import Row, row_of

Rows = Iterable[Mapping[str, Any]]
AS_PNG = ("1", "L", "LA", "P", "RGB", "RGBA", "I", "I;16")
"""The modes of PIL images that a PNG can hold."""


@dataclass(frozen=True)
class MemoryRows:
    """Rows that can be read several times.

    Attributes:
        pack: whether their pictures are in memory, and not paths.
        root: folder that relative paths start from.
    """

    rows: Rows
    pack: bool
    root: Path

    @classmethod
    def of(cls, rows: Any, images: Path | None = None) -> MemoryRows:
        """Look at rows.

        Args:
            images: folder that relative paths start from; default: the working folder. Absolute paths lead below it.

        Raises:
            MmdoraError: these are no rows.
        """
        rows = _again(rows)
        first = _first_file(rows)
        pack = first is not None and not isinstance(first, (str, Path))
        absolute = not pack and first is not None and Path(str(first)).is_absolute()
        return cls(rows, pack, images or (Path(Path(str(first)).anchor) if absolute else Path.cwd()))

    @property
    def suffix(self) -> str:
        """The ending of the file that `write` makes: Parquet with pictures that are in memory, else JSON Lines."""
        return (ParquetFile if self.pack else JsonlFile).suffix

    def write(self, path: Path, name: str) -> None:
        """Write them as a file of records.

        Args:
            name: what errors call the rows; rows without an id are named after it too.

        Raises:
            MmdoraError: there is no row; or one is none, which the message names.
        """
        file = (ParquetFile if self.pack else JsonlFile)(path)
        try:
            for made in self._made(name):
                file.add(made)
            file.finish()
        except BaseException:
            file.discard()
            path.unlink(missing_ok=True)
            raise

    def read(self) -> list[Row]:
        """The records that are asked and scored.

        Raises:
            MmdoraError: as `write`.
        """
        return [row_of(json.loads(made.line), self.root, made.files or None) for made in self._made("row")]

    def _made(self, name: str) -> Iterator[Made]:
        job, empty = Job(partial(_drafts, pack=self.pack), self.root, self.root, self.pack), True
        official = (OfficialRow(row, Path(name), 0, number) for number, row in enumerate(self.rows))
        while chunk := list(islice(official, CHUNK_ROWS)):
            for made in convert(job, chunk):
                empty = False
                if not isinstance(made, Made):
                    raise MmdoraError(f"{name}[{chunk[made.row].number}]: {made.reason}")
                yield made
        if empty:
            raise MmdoraError(f"{name}: there are no rows")


def _drafts(row: OfficialRow, *, pack: bool) -> Iterator[RecordDraft]:
    value = row.value
    if not isinstance(value, Mapping):
        raise MmdoraError(f"a row is a dict of columns, not {type(value).__name__}")
    name = value.get("id")
    name = f"{row.file}-{row.number}" if name is None else name
    if "messages" in value:
        pictures = value.get("images") or value.get("image") or []
        pictures = pictures if isinstance(pictures, (list, tuple)) else [pictures]
        videos = [str(video) for video in value.get("videos") or []]
        draft = conversation(name, value["messages"], [_picture(picture) for picture in pictures], videos)
    elif "question" in value:
        pictures = [] if value.get("image") is None else [_picture(value["image"])]
        draft = asked(name, pictures, value["question"], value.get("answer"))
    else:
        raise MmdoraError(
            f"a row needs messages, or a question; its columns are {', '.join(map(str, value)) or 'none'}"
        )
    if not pack and any(isinstance(picture, bytes) for picture in draft["images"]):
        raise MmdoraError("its picture is in memory, and those of rows before it are paths; give all in one way")
    yield {**draft, "meta": value.get("meta") or {}}


def _picture(value: Any) -> Picture:
    if isinstance(value, Image.Image):
        file = io.BytesIO()
        picture = value if value.mode in AS_PNG else to_rgb(value)
        picture.save(file, "PNG", compress_level=1)
        return file.getvalue()
    if isinstance(value, Mapping):
        return value["bytes"] if value.get("bytes") is not None else str(value["path"])
    if isinstance(value, (bytes, str)):
        return value
    if isinstance(value, Path):
        return str(value)
    raise MmdoraError(f"a picture is a path, a PIL image or the bytes of a file, not {type(value).__name__}")


def _again(rows: Any) -> Rows:
    """The rows, so that they can be read twice; those of `datasets` with their pictures as they lie in the files."""
    if isinstance(rows, (str, Path, Mapping)) or not isinstance(rows, Iterable):
        raise MmdoraError(f"rows must be a list of rows or a datasets.Dataset, not {type(rows).__name__}")
    if not isinstance(rows, Sized):
        return list(rows)
    features = getattr(rows, "features", None)
    if features is None:
        return rows
    import datasets

    for column, kind in features.items():
        if isinstance(kind, datasets.Image):
            rows = rows.cast_column(column, datasets.Image(decode=False))  # pyright: ignore[reportAttributeAccessIssue]
        elif isinstance(kind, datasets.List) and isinstance(kind.feature, datasets.Image):
            plain = datasets.List(datasets.Image(decode=False))
            rows = rows.cast_column(column, plain)  # pyright: ignore[reportAttributeAccessIssue]
    return rows


def _first_file(rows: Rows) -> Any:
    """The first picture or video of the rows: bytes or a PIL image, or a path; None if they have none."""
    for row in rows:
        if isinstance(row, Mapping):
            several = row.get("images") or []
            for picture in (*(several if isinstance(several, (list, tuple)) else [several]), row.get("image")):
                if isinstance(picture, Mapping):
                    return picture["path"] if picture.get("bytes") is None else picture["bytes"]
                if picture is not None:
                    return picture
            if row.get("videos"):
                return row["videos"][0]
    return None
