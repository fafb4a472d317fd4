"""What is known before a model is loaded: that no record is both learned and held out."""

import tracemalloc
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pyarrow as pa
import pytest

from mmdora.errors import MmdoraError
from mmdora.records.reader import Records, read_records, write_records
from mmdora.records.record import qa_record
from mmdora.train.check import check_apart


def records(path: Path, *ids: str, max_turns: int | None = None) -> Records:
    write_records(path, [qa_record(name, "none.png", [("what?", "this"), ("and now?", "that")]) for name in ids])
    return read_records(path, max_turns=max_turns)


def test_ids_in_both_are_counted_and_named(tmp_path):
    train = records(tmp_path / "train.jsonl", "a", "b", "c", "d", "e#1")
    check_apart(train, records(tmp_path / "apart.jsonl", "f", "e", "A", "b "))
    held_out = records(tmp_path / "eval.jsonl", "x", "d", "b", "b", "a", "y", "c")
    said = r"5 of 7 records of \S+eval\.jsonl .* in \S+train\.jsonl too \('d', 'b', 'b', …\)"
    with pytest.raises(MmdoraError, match=said):
        check_apart(train, held_out)


def test_a_piece_of_a_record_is_that_record(tmp_path):
    train = records(tmp_path / "train.jsonl", "a", "b#c", max_turns=1)
    assert train.ids.to_pylist() == ["a#0", "a#1", "b#c#0", "b#c#1"]
    check_apart(train, records(tmp_path / "apart.jsonl", "b", "a#c"), pieces=True)
    for name in ("a", "b#c", "a#1"):
        with pytest.raises(MmdoraError, match=rf"1 of 1 records .*\('{name}'\)"):
            check_apart(train, records(tmp_path / f"{name}.jsonl", name), pieces=True)


def test_many_ids_become_no_python_objects():
    def stand_in(first: int, rows: int) -> Records:
        ids = pa.chunked_array([[f"row-{n}" for n in range(first, first + rows)]], pa.large_string())
        return cast(Records, cast(Any, SimpleNamespace(ids=ids, path="file")))

    train, held_out = stand_in(0, 200_000), stand_in(200_000, 1_000)
    before = pa.total_allocated_bytes()
    tracemalloc.start()
    check_apart(train, held_out, pieces=True)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 100_000, "a set of the ids takes 20 MB"
    assert pa.total_allocated_bytes() - before < 1_000_000
