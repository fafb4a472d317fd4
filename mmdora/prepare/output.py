"""Files of records while they are written, and the statistics of what was written to them."""

from __future__ import annotations

import hashlib
import heapq
import json
import zlib
from bisect import bisect_left
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmdora.files import sha256
from mmdora.prepare.convert import Made, Shape

BAD_ROWS = "bad_rows.jsonl"
"""The file that lists the rows that could not be used."""
SAMPLES = 24
"""How many records of a split the report shows."""
EDGES = (0, 1, 2, 3, *(round(2 ** (half / 2)) for half in range(4, 41)))
"""Upper edges of the bins of the length histograms, in characters: two for each doubling, up to a million."""
MOST_TURNS = 20
"""Records with more turns than this are counted as having this many."""
MOST_KINDS = 40
"""How many values of `meta.type` are counted apart; all others are counted together."""
GROUP_BYTES = 1 << 25
"""A row group of a Parquet file ends when it holds this many bytes of images; readers hold one group in memory."""
GROUP_ROWS = 1000
"""A row group of a Parquet file has at most so many rows."""
ONCE: dict[str, Any] = {"use_dictionary": ["images.list.element.bytes"], "dictionary_pagesize_limit": 1 << 30}
"""Options of Parquet that store equal images of a row group once; the dictionary must be able to hold all of them."""


@dataclass
class Counts:
    """Statistics of a split. Their size is bounded, whatever the number of records."""

    records: int = 0
    unanswered: int = 0
    images: int = 0
    text_only: int = 0
    turns: Counter[int] = field(default_factory=Counter)  # how many records have so many turns
    question_characters: Counter[int] = field(default_factory=Counter)  # how many records fall into each `bin_of`
    answer_characters: Counter[int] = field(default_factory=Counter)
    types: Counter[str] = field(default_factory=Counter)
    _sampled: list[tuple[int, int]] = field(default_factory=list)  # a heap of (-hash, number): the smallest hashes

    def add(self, name: str, shape: Shape) -> None:
        """Count one more record, whose id is `name`."""
        mark = -zlib.crc32(f"{name}:{self.records}".encode())
        if len(self._sampled) < SAMPLES:
            heapq.heappush(self._sampled, (mark, self.records))
        elif mark > self._sampled[0][0]:
            heapq.heapreplace(self._sampled, (mark, self.records))
        self.records += 1
        self.unanswered += not shape.answered
        self.images += shape.images
        self.text_only += not shape.images
        self.turns[min(shape.turns, MOST_TURNS)] += 1
        self.question_characters[bin_of(shape.question)] += 1
        self.answer_characters[bin_of(shape.answer)] += 1
        if shape.type:
            known = shape.type in self.types or len(self.types) < MOST_KINDS
            self.types[shape.type if known else "(others)"] += 1

    def to_dict(self) -> dict[str, Any]:
        """The statistics for the card. `samples` are places of records in the file, chosen by a hash of their ids."""
        plain = {name: getattr(self, name) for name in ("records", "unanswered", "images", "text_only")}
        binned = {
            name: {str(edge): count for edge, count in sorted(getattr(self, name).items())}
            for name in ("turns", "question_characters", "answer_characters")
        }
        samples = sorted(number for _, number in self._sampled)
        return plain | binned | {"types": dict(self.types.most_common()), "samples": samples}


def bin_of(characters: int) -> int:
    """The bin of a length: the first of `EDGES` that is not below it, or the last."""
    return EDGES[min(bisect_left(EDGES, characters), len(EDGES) - 1)]


class JsonlFile:
    """A file of records as JSON Lines."""

    suffix = ".jsonl"

    def __init__(self, path: Path):
        self.path, self.counts = path, Counts()
        self._file = path.open("wb")
        self._digest = hashlib.sha256()

    def add(self, made: Made) -> None:
        """Write one record."""
        self._file.write(made.line)
        self._digest.update(made.line)
        self.counts.add(made.id, made.shape)

    def finish(self) -> str:
        """Complete the file; return its SHA-256 in hexadecimal."""
        self._file.close()
        return self._digest.hexdigest()

    def discard(self) -> None:
        """Close a file that is not complete."""
        with suppress(OSError):  # What is still in memory may find no room on a full disk.
            self._file.close()


class ParquetFile:
    """A file of records with their images inside, as the hub's image datasets store them.

    Its columns are `id` (text), `messages` and `meta` (JSON), and `images` (a list of {bytes, path}); `datasets`
    reads them as `Json` and `Image`. Equal images of one row group are stored once.
    """

    suffix = ".parquet"

    def __init__(self, path: Path):
        import pyarrow as pa
        import pyarrow.parquet as pq

        self.path, self.counts = path, Counts()
        features = {
            "id": {"dtype": "string", "_type": "Value"},
            "messages": {"_type": "Json"},
            "images": {"feature": {"_type": "Image"}, "_type": "List"},
            "meta": {"_type": "Json"},
        }
        picture = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
        self._schema = pa.schema(
            [("id", pa.string()), ("messages", pa.json_()), ("images", pa.list_(picture)), ("meta", pa.json_())],
            metadata={"huggingface": json.dumps({"info": {"features": features}})},
        )
        self._writer = pq.ParquetWriter(path, self._schema, **ONCE)
        self._rows: list[dict[str, Any]] = []
        self._waiting = 0

    def add(self, made: Made) -> None:
        """Write one record; its images are `made.files`."""
        record = json.loads(made.line)
        pictures = zip(record["images"], made.files, strict=True)
        self._rows.append(
            {
                "id": record["id"],
                "messages": json.dumps(record["messages"], ensure_ascii=False),
                "images": [{"bytes": data, "path": name} for name, data in pictures],
                "meta": json.dumps(record["meta"], ensure_ascii=False),
            }
        )
        self._waiting += sum(map(len, made.files))
        if self._waiting > GROUP_BYTES or len(self._rows) == GROUP_ROWS:
            self._flush()
        self.counts.add(made.id, made.shape)

    def _flush(self) -> None:
        import pyarrow as pa

        columns = []
        for column in self._schema:
            values = [row[column.name] for row in self._rows]
            json_text = isinstance(column.type, pa.JsonType)
            array = pa.array(values, column.type.storage_type if json_text else column.type)
            columns.append(pa.ExtensionArray.from_storage(column.type, array) if json_text else array)
        self._writer.write_table(pa.Table.from_arrays(columns, schema=self._schema))
        self._rows, self._waiting = [], 0

    def finish(self) -> str:
        """Complete the file; return its SHA-256 in hexadecimal."""
        self._flush()
        self._writer.close()
        return sha256(self.path)

    def discard(self) -> None:
        """Close a file that is not complete."""
        with suppress(OSError):  # What is still in memory may find no room on a full disk.
            self._writer.close()
