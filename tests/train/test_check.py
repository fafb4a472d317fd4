"""What is known before a model is loaded: that no record is both learned and held out."""

import tracemalloc
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pyarrow as pa
import pytest
from PIL import Image

from mmdora.config import RunConfig, validate
from mmdora.errors import MmdoraError
from mmdora.records.reader import Records, read_records, write_records
from mmdora.records.record import qa_record
from mmdora.train.check import check_apart, check_schedule, check_warmup


def records(path: Path, *ids: str, max_turns: int | None = None) -> Records:
    """Records of these ids, their contents all different, in this file and in others."""
    turns = [[(f"what is {name} of {path.name}?", "this"), ("and now?", "that")] for name in ids]
    write_records(path, [qa_record(name, "none.png", said) for name, said in zip(ids, turns, strict=True)])
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
        contents = pa.chunked_array([range(first, first + rows)], pa.int64())
        return cast(Records, cast(Any, SimpleNamespace(ids=ids, contents=contents, path="file")))

    train, held_out = stand_in(0, 200_000), stand_in(200_000, 1_000)
    before = pa.total_allocated_bytes()
    tracemalloc.start()
    check_apart(train, held_out, pieces=True)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 100_000, "a set of the ids takes 20 MB"
    assert pa.total_allocated_bytes() - before < 1_000_000


def without_ids(path: Path, *rows: tuple[str, str], max_turns: int | None = None) -> Records:
    """Records of a question, about a picture of the file's folder, each."""
    path.parent.mkdir(exist_ok=True)
    made: list[Any] = [qa_record("", image, [(question, "yes"), ("sure?", "no")]) for question, image in rows]
    for row in made:
        del row["id"]
    write_records(path, made)
    return read_records(path, max_turns=max_turns)


def test_records_without_ids_are_compared_by_content(tmp_path: Path) -> None:
    for name in "ab":
        Image.new("RGB", (2, 2), {"a": "red", "b": "blue"}[name]).save(tmp_path / f"{name}.png")
    train = without_ids(tmp_path / "train.jsonl", ("what?", "a.png"), ("why?", "a.png"))
    check_apart(train, without_ids(tmp_path / "apart.jsonl", ("what?", "b.png"), ("who?", "a.png")))
    held_out = without_ids(tmp_path / "eval.jsonl", ("who?", "a.png"), ("why?", "a.png"))
    said = (
        r"1 of 2 records of \S+eval\.jsonl have the messages and images of a record of \S+train\.jsonl .*eval\.jsonl:2"
    )
    with pytest.raises(MmdoraError, match=said):
        check_apart(train, held_out)
    pieces = without_ids(tmp_path / "pieces.jsonl", ("why?", "a.png"), max_turns=1)
    with pytest.raises(MmdoraError, match="1 of 2 records"):
        check_apart(pieces, held_out, pieces=True)


def test_equal_names_in_different_folders_are_compared_by_file(tmp_path: Path) -> None:
    train = without_ids(tmp_path / "train/rows.jsonl", ("what?", "a.png"))
    held_out = without_ids(tmp_path / "eval/rows.jsonl", ("what?", "a.png"))
    for folder, colour in (("train", "red"), ("eval", "blue")):
        Image.new("RGB", (2, 2), colour).save(tmp_path / folder / "a.png")
    check_apart(train, held_out)
    Image.new("RGB", (2, 2), "red").save(tmp_path / "eval/a.png")
    with pytest.raises(MmdoraError, match="1 of 1 records"):
        check_apart(train, held_out)


def test_a_warmup_longer_than_the_run_is_refused() -> None:
    def config(**training: Any) -> RunConfig:
        return validate(RunConfig, {"training": training}, where=lambda key: "test")

    check_schedule(config(steps=4, warmup=3))
    check_schedule(config(steps=4, warmup=0.5))
    with pytest.raises(MmdoraError, match=r"training\.warmup 10: the run has 4 steps"):
        check_schedule(config(steps=4, warmup=10))
    with pytest.raises(MmdoraError, match=r"training\.warmup 10: the run has 7 steps"):
        check_warmup(config(warmup=10), 7)
