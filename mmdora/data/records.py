"""Records: what every dataset becomes, and how a file of them is read.

A record is `{"id", "messages", "images", "meta"?}`: `messages` is a list of `{role, content}` with
content a list of `{"type": "text", "text": …}` and `{"type": "image"}` parts, `images` the paths
(relative to a declared root) in the order of the image parts. Files are JSONL of records, or a
JSON list in LLaVA's layout. They are read once into a memory-mapped Arrow table by `datasets`, which
every loader process opens by its file name; no list or object per row is held anywhere.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from mmdora.data.llava_json import to_record
from mmdora.errors import MmdoraError

Record = dict[str, Any]
READ_AHEAD = 256  # records decoded together when all are read in turn


class Records:
    """A read-only sequence of records on disk; `root` is where its image paths start."""

    def __init__(self, path: Path | str, images: Path | str | None = None, *, max_turns: int | None = None):
        import datasets

        self.path = Path(path)
        if not self.path.is_file():
            raise MmdoraError(f"{self.path}: no such file of records (mmdora prep makes one)")
        self.root = Path(images) if images is not None else self.path.parent
        if not self.root.is_dir():
            raise MmdoraError(f"{self.root}: the images root is not a folder")
        status = self.path.stat()
        datasets.disable_progress_bars()
        try:
            self._table = datasets.Dataset.from_generator(
                _rows,
                features=datasets.Features(
                    {
                        "json": datasets.Value("large_string"),
                        "characters": datasets.Value("int32"),
                        "images": datasets.Value("int32"),
                    }
                ),
                # size and time make a changed file another dataset for the cache
                gen_kwargs={
                    "path": str(self.path.resolve()),
                    "stamp": (status.st_size, status.st_mtime_ns),
                    "max_turns": max_turns,
                },
            )
        except Exception as error:
            cause: BaseException | None = error
            while cause is not None and not isinstance(cause, MmdoraError):
                cause = cause.__cause__ or cause.__context__
            raise cause or error from None

    def __len__(self) -> int:
        return len(self._table)

    def __getitem__(self, index: int) -> Record:
        return json.loads(self._table[int(index)]["json"])

    def __iter__(self) -> Iterator[Record]:
        for start in range(0, len(self), READ_AHEAD):
            yield from map(json.loads, self._table[start : start + READ_AHEAD]["json"])

    @property
    def characters(self) -> np.ndarray:
        """[rows] int32: characters of text per record."""
        return self._table.data.column("characters").to_numpy()

    @property
    def images(self) -> np.ndarray:
        """[rows] int32: images per record."""
        return self._table.data.column("images").to_numpy()

    @property
    def fingerprint(self) -> str:
        """Differs when the file of records, `max_turns` or the table's columns do."""
        return self._table._fingerprint

    @property
    def cache(self) -> Path:
        """The folder of the Arrow table, for what else is kept about these records."""
        return Path(self._table.cache_files[0]["filename"]).parent


def read_records(path: Path | str, images: Path | str | None = None, *, max_turns: int | None = None) -> Records:
    """Open a file of records; `images` is the root of its image paths (default: the file's folder).

    Args:
        max_turns: longer conversations become several records, each with the images and system text.

    Raises:
        MmdoraError: naming file and line of the first row that is not a record.
    """
    return Records(path, images, max_turns=max_turns)


def qa_record(name: str, image: str, pairs: list[tuple[str, str]]) -> Record:
    """Questions and answers about one picture as a record; the picture stands in the first turn.

    `meta.type`, by which the evaluation groups, is `yes/no` or `other`, after the last answer.
    """
    messages = []
    for question, answer in pairs:
        picture = [] if messages else [{"type": "image"}]
        messages.append({"role": "user", "content": [*picture, {"type": "text", "text": question}]})
        messages.append({"role": "assistant", "content": [{"type": "text", "text": answer}]})
    kind = "yes/no" if pairs[-1][1] in ("yes", "no") else "other"
    return {"id": name, "messages": messages, "images": [image], "meta": {"type": kind}}


def write_records(path: Path, rows: Iterable[Record]) -> int:
    """Write JSONL through a temporary file, so that a half-written one never has the final name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial, count = path.with_suffix(".partial"), 0
    with partial.open("w", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
            count += 1
    partial.replace(path)
    return count


def split_turns(record: Record, most: int | None) -> list[Record]:
    """Cut a conversation into records of at most `most` turns (a turn: a question and its answer).

    Only conversations whose images all stand before the first answer can be cut; others stay whole.
    """
    messages = record["messages"]
    answers = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
    if most is None or len(answers) <= most:
        return [record]
    first = answers[0]
    if any(part["type"] == "image" for message in messages[first:] for part in message["content"]):
        return [record]
    head = [message for message in messages[:first] if message["role"] == "system"]
    images = [part for message in messages[:first] for part in message["content"] if part["type"] == "image"]
    pieces, start = [], len(head)
    for number, last in enumerate(range(most - 1, len(answers) + most - 1, most)):
        end = answers[min(last, len(answers) - 1)] + 1
        turns = [dict(message) for message in messages[start:end]]
        if number:
            turns[0] = turns[0] | {"content": images + turns[0]["content"]}
        pieces.append(record | {"id": f"{record['id']}#{number}", "messages": head + turns})
        start = end
    return pieces


def check_record(row: Any, where: str) -> Record:
    """Return `row` if it is a record.

    Raises:
        MmdoraError: saying what is wrong with it and where.
    """
    if not isinstance(row, dict) or not isinstance(row.get("messages"), list) or not row["messages"]:
        raise MmdoraError(f"{where}: a record needs a non-empty list 'messages'")
    marks = 0
    for message in row["messages"]:
        if not isinstance(message, dict) or message.get("role") not in ("system", "user", "assistant"):
            raise MmdoraError(f"{where}: every message needs a role: system, user or assistant")
        if not isinstance(message.get("content"), list):
            raise MmdoraError(
                f"{where}: 'content' must be a list of parts, not {type(message.get('content')).__name__}"
            )
        for part in message["content"]:
            kind = part.get("type") if isinstance(part, dict) else None
            if kind == "image":
                marks += 1
            elif kind != "text" or not isinstance(part.get("text"), str):
                raise MmdoraError(
                    f"{where}: a part is {{type: image}} or {{type: text, text: a string}}; found {part!r:.80}"
                )
    images = row.get("images", [])
    if not isinstance(images, list) or not all(isinstance(name, str) for name in images):
        raise MmdoraError(f"{where}: 'images' must be a list of paths")
    if marks != len(images):
        raise MmdoraError(f"{where}: {marks} image parts for {len(images)} images")
    if not any(message["role"] == "assistant" for message in row["messages"]):
        raise MmdoraError(f"{where}: no assistant message, so there is nothing to learn or to score")
    return {
        "id": str(row.get("id", where)),
        "messages": row["messages"],
        "images": images,
        "meta": row.get("meta") or {},
    }


def _rows(path: str, stamp: tuple[int, int], max_turns: int | None) -> Iterator[dict[str, Any]]:
    del stamp
    empty = True
    for record in _parse(Path(path)):
        empty = False
        for piece in split_turns(record, max_turns):
            yield {
                "json": json.dumps(piece, ensure_ascii=False),
                "characters": sum(len(part.get("text", "")) for m in piece["messages"] for part in m["content"]),
                "images": len(piece["images"]),
            }
    if empty:
        raise MmdoraError(f"{path}: holds no records")


def _parse(path: Path) -> Iterator[Record]:
    try:
        if path.suffix == ".json":
            rows = json.loads(path.read_text(encoding="utf-8"))
            if not isinstance(rows, list):
                raise MmdoraError(f"{path}: expected a JSON list in LLaVA's layout, or JSONL with the ending .jsonl")
            for number, row in enumerate(rows):
                where = f"{path}: row {number}"
                yield check_record(to_record(row, where) if isinstance(row, dict) else row, where)
            return
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(tqdm(file, desc="read records", unit="row", unit_scale=True, delay=1), 1):
                if line.strip():
                    where = f"{path}:{number}"
                    try:
                        row = json.loads(line)
                    except json.JSONDecodeError as error:
                        raise MmdoraError(f"{where}: broken JSON ({error.msg} at column {error.colno})") from None
                    yield check_record(row, where)
    except UnicodeDecodeError:
        raise MmdoraError(f"{path}: not UTF-8 text") from None
    except json.JSONDecodeError as error:
        raise MmdoraError(f"{path}:{error.lineno}: broken JSON ({error.msg})") from None
