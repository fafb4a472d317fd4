"""Reading records: JSONL and LLaVA's layout, turns cut into rows, mistakes named by file and line."""

import json
import pickle
import tracemalloc
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest

from mmdora.batches.fit import fit
from mmdora.errors import MmdoraError
from mmdora.records import json_stream
from mmdora.records.images import FileRef
from mmdora.records.reader import read_records, write_records
from mmdora.records.turns import split_turns

IMAGE = {"type": "image"}


def said(role: str, text: str, *before) -> dict:
    return {"role": role, "content": [*before, {"type": "text", "text": text}]}


def conversation(turns: int, images: int = 1) -> Any:
    messages = []
    for turn in range(turns):
        messages += [said("user", f"q{turn}", *([IMAGE] * images if turn == 0 else [])), said("assistant", f"a{turn}")]
    return {"id": "c", "messages": messages, "images": [f"{i}.png" for i in range(images)]}


def as_row(record: dict, root: Path) -> dict:
    images = [FileRef(name, root) for name in record["images"]]
    return record | {"images": images, "features": None, "meta": record.get("meta", {})}


def test_written_records_are_read_back(tmp_path: Path):
    rows = [conversation(2), conversation(1, images=0) | {"meta": {"type": "other"}}]
    assert write_records(tmp_path / "r.jsonl", rows) == 2
    records = read_records(tmp_path / "r.jsonl")
    assert len(records) == 2 and records.root == tmp_path
    assert records[0] == as_row(rows[0], tmp_path)
    assert [row["meta"] for row in records] == [{}, {"type": "other"}]


def test_what_is_told_of_all_records_at_once(tmp_path: Path):
    rows: list[dict] = [conversation(turns, images) for turns in (1, 12) for images in (0, 1, 3)] * 60
    write_records(tmp_path / "r.jsonl", rows)
    records = read_records(tmp_path / "r.jsonl")
    assert list(records) == [records[i] for i in range(len(records))] == [as_row(row, tmp_path) for row in rows]
    texts = ["".join(p.get("text", "") for m in row["messages"] for p in m["content"]) for row in rows]
    assert records.characters.tolist() == [len(text) for text in texts]
    assert records.images.tolist() == [len(row["images"]) for row in rows]
    assert records.fingerprint == read_records(tmp_path / "r.jsonl").fingerprint
    assert records.fingerprint != read_records(tmp_path / "r.jsonl", max_turns=2).fingerprint


def test_a_loader_process_gets_the_name_of_the_table_not_its_rows(tmp_path: Path):
    write_records(tmp_path / "r.jsonl", [conversation(20)] * 500)
    records = read_records(tmp_path / "r.jsonl")
    sent = pickle.dumps(records)
    assert len(sent) < 10_000
    assert pickle.loads(sent)[499] == records[499]


def test_a_changed_file_is_read_anew(tmp_path: Path):
    path = tmp_path / "r.jsonl"
    write_records(path, [conversation(1)])
    assert len(read_records(path)) == 1
    write_records(path, [conversation(1), conversation(2)])
    assert len(read_records(path)) == 2


def test_turns_are_cut_and_every_piece_has_the_images_and_the_system_text():
    record = conversation(5)
    record["messages"].insert(0, said("system", "be brief"))
    pieces: list[Any] = split_turns(record, 2)
    assert [[m["content"][-1]["text"] for m in piece["messages"]] for piece in pieces] == [
        ["be brief", "q0", "a0", "q1", "a1"],
        ["be brief", "q2", "a2", "q3", "a3"],
        ["be brief", "q4", "a4"],
    ]
    assert all(piece["messages"][1]["content"][0] == IMAGE and piece["images"] == ["0.png"] for piece in pieces)
    assert len({piece["id"] for piece in pieces}) == 3
    assert split_turns(record, 5) == [record]


def test_a_conversation_with_a_later_image_stays_whole():
    record = conversation(3)
    record["messages"][2]["content"].insert(0, IMAGE)
    record["images"].append("late.png")
    assert split_turns(record, 1) == [record]


def test_llava_layout(tmp_path: Path):
    rows = [
        {"id": 7, "image": "a.png", "conversations": [
            {"from": "human", "value": "<image>\nWhat is this?"}, {"from": "gpt", "value": "A cat."}]},
        {"id": "t", "conversations": [{"from": "human", "value": "Hello"}, {"from": "gpt", "value": "Hi."}]},
        {"id": "u", "image": "b.png", "conversations": [
            {"from": "human", "value": "no mark"}, {"from": "gpt", "value": "x"}]},
    ]  # fmt: skip
    (tmp_path / "llava.json").write_text(json.dumps(rows))
    first, text_only, unmarked = read_records(tmp_path / "llava.json")
    assert first["id"] == "7" and first["images"] == [FileRef("a.png", tmp_path)]
    assert first["messages"][0] == {"role": "user", "content": [IMAGE, {"type": "text", "text": "What is this?"}]}
    assert text_only["images"] == [] and text_only["messages"][1]["role"] == "assistant"
    assert unmarked["messages"][0]["content"][0] == IMAGE


def test_a_large_list_is_read_as_a_stream(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Six times the rows take no more memory; `json.load` would hold them all."""
    monkeypatch.setattr(json_stream, "CHUNK", 1 << 14)

    def peak(rows: int) -> int:
        path = tmp_path / f"{rows}.json"
        turns = [{"from": "human", "value": "q" * 1000}, {"from": "gpt", "value": "a" * 1000}]
        path.write_text(json.dumps([{"id": i, "conversations": turns} for i in range(rows)], indent=1))
        tracemalloc.start()
        assert len(read_records(path)) == rows
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return most

    peak(10)  # what is made at first use
    few, many = peak(1_000), peak(6_000)
    assert many < few + 1_000_000 < (tmp_path / "6000.json").stat().st_size / 2


def test_a_list_tells_row_and_line_of_a_mistake(tmp_path: Path):
    rows = [{"id": 1, "conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]}, {"id": 2}]
    (tmp_path / "l.json").write_text("\ufeff[\n" + ",\n".join(map(json.dumps, rows)) + "\n]")
    with pytest.raises(MmdoraError, match=r"l\.json: row 1 \(line 3\): 'conversations'"):
        read_records(tmp_path / "l.json")
    (tmp_path / "l.json").write_text("[" + json.dumps(rows[0]) + ",")
    with pytest.raises(MmdoraError, match=r"l\.json:1: broken JSON .*cut short"):
        read_records(tmp_path / "l.json")
    (tmp_path / "o.json").write_text("{}")
    with pytest.raises(MmdoraError, match="expected a JSON list in LLaVA's layout"):
        read_records(tmp_path / "o.json")
    (tmp_path / "e.json").write_text("[]")
    with pytest.raises(MmdoraError, match="holds no records"):
        read_records(tmp_path / "e.json")


@pytest.mark.parametrize("content", [[], [{"type": "text", "text": " \n"}]])
def test_what_has_no_answer_can_be_read_but_not_learned(tmp_path: Path, content: list):
    unanswered: dict = conversation(1) | {"id": "the-one"}
    unanswered["messages"][-1] = {"role": "assistant", "content": content}
    write_records(tmp_path / "r.jsonl", [conversation(2), unanswered, conversation(1)])
    records = read_records(tmp_path / "r.jsonl")
    assert len(records) == 3
    with pytest.raises(MmdoraError, match=r"record the-one has an empty last answer \(1 of 3 do\)"):
        records.check_answered()
    with pytest.raises(MmdoraError, match="the-one"):
        fit(records, Mock(), None, "error")
    write_records(tmp_path / "r.jsonl", [conversation(2)])
    read_records(tmp_path / "r.jsonl").check_answered()


GOOD = json.dumps(conversation(1))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "holds no records"),
        (f"{GOOD}\n{GOOD[:50]}\n", r"r\.jsonl:2: broken JSON"),
        (f"{GOOD}\n\n[1]\n", r"r\.jsonl:3: a record needs"),
        (json.dumps({"messages": [said("robot", "x")]}), "role"),
        (
            json.dumps({"messages": [{"role": "user", "content": "plain"}]}),
            "'content' must be a list of parts, not str",
        ),
        (json.dumps({"messages": [{"role": "user", "content": [{"type": "text", "text": 3}]}]}), "found"),
        (json.dumps(conversation(1) | {"images": []}), "1 image parts for 0 images"),
        (json.dumps({"messages": [said("user", "x")]}), "no assistant message"),
        (
            json.dumps({"messages": [said("user", "x"), said("assistant", "y", IMAGE)], "images": ["0.png"]}),
            "an answer",
        ),
    ],
)
def test_mistakes_are_named(tmp_path: Path, text: str, message: str):
    (tmp_path / "r.jsonl").write_text(text)
    with pytest.raises(MmdoraError, match=message):
        read_records(tmp_path / "r.jsonl")


def test_a_byte_order_mark_is_no_part_of_the_first_record(tmp_path: Path):
    (tmp_path / "r.jsonl").write_text(f"{GOOD}\n{GOOD}\n", encoding="utf-8-sig")
    assert len(read_records(tmp_path / "r.jsonl")) == 2


def test_not_text_and_not_there(tmp_path: Path):
    (tmp_path / "b.jsonl").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(MmdoraError, match="not UTF-8"):
        read_records(tmp_path / "b.jsonl")
    with pytest.raises(MmdoraError, match="no such file"):
        read_records(tmp_path / "missing.jsonl")
    (tmp_path / "l.json").write_text(json.dumps([{"id": 1, "image": "a", "conversations": [{"from": "gpt"}]}]))
    with pytest.raises(MmdoraError, match="row 0"):
        read_records(tmp_path / "l.json")
