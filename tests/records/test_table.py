"""A kept table that was damaged is never read: the file is read again, and a warning says so."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest

from mmdora.errors import MmdoraError
from mmdora.records.reader import Records, read_records, write_records

ROWS = 300


def written(folder: Path) -> Path:
    def said(role: str, text: str) -> dict:
        return {"role": role, "content": [{"type": "text", "text": text}]}

    rows = [
        {"id": f"row{i}", "messages": [said("user", f"q{i}"), said("assistant", f"answer {i}")]} for i in range(ROWS)
    ]
    write_records(folder / "r.jsonl", [row | {"images": []} for row in rows])
    return folder / "r.jsonl"


def answers(records: Records) -> list[str]:
    return [row["messages"][1]["content"][0]["text"] for row in records]


def changed_text(data: bytes) -> bytes:
    """The only damage that leaves a table which can be read from end to end."""
    place = data.index(b"answer 100")
    return data[:place] + b"ANSWER" + data[place + 6 :]


@pytest.mark.parametrize(
    ("name", "damaged"),
    [
        ("*.arrow", lambda data: data[: len(data) // 2]),
        ("*.arrow", lambda data: data[:-10]),
        ("*.arrow", lambda data: b""),
        ("*.arrow", lambda data: bytes(len(data))),
        ("*.arrow", lambda data: data[: len(data) // 2] + bytes(len(data) - len(data) // 2)),
        ("*.arrow", lambda data: data[:4000] + bytes(4096) + data[8096:]),
        ("*.arrow", lambda data: data[: len(data) // 2] + data[: len(data) - len(data) // 2]),
        ("*.arrow", changed_text),
        ("dataset_info.json", lambda data: data[: len(data) // 2]),
        ("dataset_info.json", lambda data: b""),
        ("checksum.json", lambda data: b""),
    ],
    ids=["half", "cut", "empty", "zeroed", "end-zeroed", "hole", "overwritten", "text", "info", "no-info", "checksum"],
)
def test_a_damaged_table_is_made_anew_and_said(tmp_path: Path, name: str, damaged: Callable[[bytes], bytes]) -> None:
    path = written(tmp_path)
    before = answers(read_records(path))
    (file,) = read_records(path).cache.glob(name)
    content = damaged(file.read_bytes())
    assert content != file.read_bytes()
    (file.parent / "damaged").write_bytes(content)
    (file.parent / "damaged").replace(file)  # A file that is mapped into memory must not be written to.
    with pytest.warns(UserWarning, match=r"r\.jsonl: its kept table is damaged \(.*\); reading the file again"):
        assert answers(read_records(path)) == before == [f"answer {i}" for i in range(ROWS)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert answers(read_records(path)) == before


def test_a_table_that_is_gone_is_made_anew(tmp_path: Path) -> None:
    path = written(tmp_path)
    before = answers(read_records(path))
    next(read_records(path).cache.glob("*.arrow")).unlink()
    with pytest.warns(UserWarning, match="kept table is damaged"):
        assert answers(read_records(path)) == before


def test_a_file_that_is_damaged_too_is_one_line(tmp_path: Path) -> None:
    """Size and time of the file are as before, so only the table tells; the file that is read again names its line."""
    path = written(tmp_path)
    status, data = path.stat(), path.read_bytes()
    next(read_records(path).cache.glob("*.arrow")).unlink()
    path.write_bytes(data[:-40] + b"x" * 39 + b"\n")
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    with pytest.raises(MmdoraError, match=rf"r\.jsonl:{ROWS}: broken JSON"), pytest.warns(UserWarning, match="damaged"):
        read_records(path)
