"""What all datasets share, by `folder` and `llava`: bad rows, processes, memory, packing, card, report, roots."""

import hashlib
import json
import math
import re
import sqlite3
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

import pytest
from kept_records import records_in
from PIL import Image

from mmdora.data_prep import folder, llava, messages
from mmdora.errors import MmdoraError
from mmdora.outputs.written import FILES
from mmdora.prepare.convert import Job, Made
from mmdora.prepare.index import Seen
from mmdora.prepare.inputs import ImageInputs, OwnInputs
from mmdora.prepare.read import OfficialRow, split_of
from mmdora.prepare.run import CHUNK_ROWS, _converted, prepare, write_splits
from mmdora.prepare.writer import Writer
from mmdora.records.packed import read_packed
from mmdora.records.record import Record, qa_record


@pytest.fixture
def root(tmp_path: Path) -> Path:
    path = tmp_path / "images"
    path.mkdir()
    for number in range(3):
        Image.new("RGB", (40 + number, 30), (80 * number, 90, 120)).save(path / f"{number}.png")
    return path


def table(path: Path, rows: int, change: Callable[[int, dict], dict] = lambda number, row: row) -> Path:
    """JSONL of questions about three pictures."""
    with path.open("w", encoding="utf-8") as file:
        for number in range(rows):
            row = {
                "id": f"q{number}",
                "image": f"{number % 3}.png",
                "question": f"What is {number}?",
                "answer": "x" * (number % 40),
            }
            file.write(json.dumps(change(number, row)) + "\n")
    return path


def card_of(out: Path, split: str = "train") -> dict:
    return json.loads((out / "dataset_card.json").read_text(encoding="utf-8"))["splits"][split]


def test_several_processes_give_what_one_gives(tmp_path, root):
    file = table(
        tmp_path / "train.jsonl", 3 * CHUNK_ROWS, lambda n, row: row | {"image": "gone.png"} if n % 100 == 7 else row
    )
    for workers in (1, 2):
        inputs = ImageInputs(files=[file], images=root, skip_bad=True, workers=workers)
        assert prepare(folder.DATASET, tmp_path / f"out{workers}", inputs) == {"train": 3 * CHUNK_ROWS - 8}
    for name in ("train.jsonl", "bad_rows.jsonl", "dataset_card.json", "report.html"):
        assert (tmp_path / "out1" / name).read_bytes() == (tmp_path / "out2" / name).read_bytes()
    assert sorted(path.name for path in (tmp_path / "out2").iterdir()) == [
        FILES, "bad_rows.jsonl", "dataset_card.json", "report.html", "train.jsonl",
    ]  # fmt: skip


def test_the_processes_are_never_far_behind_the_file(tmp_path):
    read = 0

    def chunks() -> Iterator[list[OfficialRow]]:
        nonlocal read
        for read in range(1, 41):
            yield [OfficialRow({"question": "q", "answer": str(read)}, tmp_path / "f.csv", read, read)]

    job = Job(folder.records, None, tmp_path, False)
    for taken, (chunk, (made,)) in enumerate(_converted(job, chunks(), 2), 1):
        assert isinstance(made, Made) and made.id == f"f-{chunk[0].number}" == f"f-{taken}"
        assert read - taken <= 5
    assert taken == 40


def test_a_bad_row_far_in_stops_everything(tmp_path, root):
    file = table(tmp_path / "train.jsonl", 3 * CHUNK_ROWS, lambda n, row: {} if n == 2 * CHUNK_ROWS + 5 else row)
    with pytest.raises(
        MmdoraError, match=rf"train\.jsonl:{2 * CHUNK_ROWS + 6}: no column 'question'; there are none; known are"
    ):
        prepare(folder.DATASET, tmp_path / "out", ImageInputs(files=[file], images=root, workers=2))
    assert not (tmp_path / "out").exists()


def test_an_earlier_result_stays_when_a_run_fails(tmp_path, root):
    out, inputs = tmp_path / "out", ImageInputs(files=[table(tmp_path / "train.jsonl", 5)], images=root)
    prepare(folder.DATASET, out, inputs)
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    table(tmp_path / "train.jsonl", 5, lambda n, row: {} if n == 4 else row)
    with pytest.raises(MmdoraError):
        prepare(folder.DATASET, out, inputs)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before


def test_a_full_disk_is_one_line(tmp_path, root, monkeypatch):
    def full(self: Seen, name: str) -> bool:
        raise sqlite3.OperationalError("database or disk is full")

    monkeypatch.setattr(Seen, "add", full)
    with pytest.raises(MmdoraError, match=r"disk is full; [\d,]+ bytes are free on that disk; nothing was written"):
        prepare(folder.DATASET, tmp_path / "out", ImageInputs(files=[table(tmp_path / "train.jsonl", 5)], images=root))
    assert not (tmp_path / "out").exists()


def test_splits_gather_in_one_folder(tmp_path, root):
    out = tmp_path / "out"
    files = {
        split: table(tmp_path / f"{split}.jsonl", 4, lambda n, row: {} if n == 3 else row) for split in ("train", "val")
    }
    for file in files.values():
        prepare(folder.DATASET, out, ImageInputs(files=[file], images=root, skip_bad=True))
    assert list(json.loads((out / "dataset_card.json").read_text())["splits"]) == ["train", "val"]
    page = (out / "report.html").read_text()
    assert page.count("<article") == 6 and ">val <" in page
    places = [json.loads(line)["file"] for line in (out / "bad_rows.jsonl").read_text().splitlines()]
    assert sorted(places) == sorted(map(str, files.values()))
    table(files["val"], 4)
    prepare(folder.DATASET, out, ImageInputs(files=[files["val"]], images=root))
    assert card_of(out, "val")["records"] == 4 and card_of(out, "train")["bad_rows"] == 1
    assert len((out / "bad_rows.jsonl").read_text().splitlines()) == 1
    with pytest.raises(MmdoraError, match="holds records of folder; choose another folder for messages"):
        prepare(messages.DATASET, out, ImageInputs(files=[files["val"]], images=root))


def test_ids_that_come_twice(tmp_path, root):
    file = table(tmp_path / "train.jsonl", 6, lambda n, row: row | {"id": f"q{n % 4}"})
    with pytest.raises(MmdoraError, match=r"train\.jsonl:5: the id 'q0' comes twice in train \(2 bad rows"):
        prepare(folder.DATASET, tmp_path / "out", ImageInputs(files=[file], images=root))
    prepare(folder.DATASET, tmp_path / "out", ImageInputs(files=[file], images=root, skip_bad=True))
    assert len(records_in(tmp_path / "out/train.jsonl", root)) == 4


def test_the_card(tmp_path, root):
    def change(number: int, row: dict) -> dict:
        return row | {"image": ""} if number == 2 else row

    file = table(tmp_path / "train.jsonl", 5, change)
    prepare(folder.DATASET, tmp_path / "out", ImageInputs(files=[file], images=root))
    card = json.loads((tmp_path / "out/dataset_card.json").read_text())
    assert card["name"] == "folder" and card["licence"] is None and card["source"] and card["unverified"] == []
    split = card["splits"]["train"]
    assert (split["records"], split["images"], split["text_only"], split["unanswered"]) == (5, 4, 1, 1)
    assert split["question_characters"] == {"11": 5} and split["answer_characters"] == {
        "0": 1,
        "1": 1,
        "2": 1,
        "3": 1,
        "4": 1,
    }
    written = tmp_path / "out" / split["file"]
    assert split["sha256"] == hashlib.sha256(written.read_bytes()).hexdigest()
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    assert split["inputs"] == [{"file": str(file), "bytes": file.stat().st_size, "sha256": digest}]
    assert split["images_root"] == str(root) and split["samples"] == [0, 1, 2, 3, 4]


def test_a_licence_is_that_of_the_owners_files_alone(tmp_path, root):
    row = {"conversations": [{"from": "human", "value": "What?"}, {"from": "gpt", "value": "A dog."}]}
    for name, licensed in (("llava_v1_5_mix665k.json", True), ("test.json", False), ("detail_23k.json", False)):
        (tmp_path / name).write_text(json.dumps([row]))
        prepare(llava.DATASET, tmp_path / "out", OwnInputs(files=[tmp_path / name]))
        card = json.loads((tmp_path / "out/dataset_card.json").read_text())
        assert (card["licence"] == llava.DATASET.origin.licence) == licensed, name
        assert ("Licence:" in (tmp_path / "out/report.html").read_text()) == licensed


def test_the_report_escapes_and_asks_for_nothing(tmp_path, root):
    evil = "<script>alert(1)</script>"
    file = table(tmp_path / "train.jsonl", 30, lambda n, row: row | {"question": f"{evil} {n}"})
    prepare(folder.DATASET, tmp_path / "out", ImageInputs(files=[file], images=root))
    page = (tmp_path / "out/report.html").read_text(encoding="utf-8")
    assert "&lt;script&gt;" in page and "<script" not in page
    assert not re.search(r"""(?:src|href)=["'](?!data:image/jpeg;base64,)""", page) and "@import" not in page
    assert page.count("data:image/jpeg") == page.count("<article") == 24
    assert len(re.findall(r'<i style="height', page)) >= 10


def test_packed_records_round_trip_and_load_with_datasets(tmp_path, root):
    import datasets

    file = table(tmp_path / "train.jsonl", 30, lambda n, row: row | {"image": ""} if n == 4 else row)
    out = tmp_path / "out"
    assert prepare(folder.DATASET, out, ImageInputs(files=[file], images=root, pack=True)) == {"train": 30}
    prepare(folder.DATASET, tmp_path / "plain", ImageInputs(files=[file], images=root))
    plain = records_in(tmp_path / "plain/train.jsonl", root)
    packed = list(read_packed(out / "train.parquet"))
    assert [record for record, _ in packed] == plain
    for record, files in packed:
        assert files == [(root / name).read_bytes() for name in record["images"]]
    loaded = datasets.Dataset.from_parquet(str(out / "train.parquet"), cache_dir=str(tmp_path / "cache"))
    assert loaded[0]["messages"] == plain[0]["messages"] and loaded[0]["images"][0].size == (40, 30)
    assert card_of(out)["packed"] and "data:image/jpeg" in (out / "report.html").read_text()
    again = tmp_path / "again"  # the packed file is one of the hub's layouts itself
    assert prepare(messages.DATASET, again, ImageInputs(files=[out / "train.parquet"])) == {"train": 30}
    assert records_in(again / "train.jsonl")[29]["messages"] == plain[29]["messages"]


def test_equal_pictures_are_packed_once_per_group(tmp_path, root):
    noise = Random(0).randbytes(90_000)
    Image.frombytes("RGB", (200, 150), noise).save(root / "0.png")
    size = (root / "0.png").stat().st_size
    file = table(tmp_path / "train.jsonl", 200, lambda n, row: row | {"image": "0.png"})
    prepare(folder.DATASET, tmp_path / "out", ImageInputs(files=[file], images=root, pack=True))
    assert (tmp_path / "out/train.parquet").stat().st_size < 5 * size


ESCAPES = ["/etc/hostname", "../secret.png", "images/../../secret.png", "link.png", "linked/secret.png", "file:///etc/hostname",
           "http://127.0.0.1:9/x.png", "a\0.png", "", ".", "C:/x.png", "~/x.png", "..\\secret.png"]  # fmt: skip


@pytest.mark.parametrize("name", ESCAPES)
@pytest.mark.parametrize("pack", [False, True])
def test_nothing_outside_the_root_is_read(name, pack, tmp_path, root):
    Image.new("RGB", (2, 2)).save(tmp_path / "secret.png")
    (root / "link.png").symlink_to(tmp_path / "secret.png")
    (root / "linked").symlink_to(tmp_path)
    row = {
        "id": "x",
        "image": name,
        "conversations": [{"from": "human", "value": "<image>"}, {"from": "gpt", "value": "y"}],
    }
    file = tmp_path / "l.json"
    file.write_text(json.dumps([row]))
    with pytest.raises(MmdoraError, match=r"l\.json:1: "):
        prepare(llava.DATASET, tmp_path / "out", ImageInputs(files=[file], images=root, pack=pack))


@pytest.mark.parametrize("rows", [25_000, pytest.param(50_000, marks=pytest.mark.slow)])
def test_memory_is_flat_however_many_rows(tmp_path, monkeypatch, rows):
    """The peak of all Python objects, measured chunk by chunk of a JSON list, is that of a few chunks throughout."""
    row = '{"id": %d, "conversations": [{"from": "human", "value": "Q%d?"}, {"from": "gpt", "value": "A%d."}]}'
    file = tmp_path / "llava.json"
    file.write_text("[" + ",\n".join(row % (n, n, n) for n in range(rows)) + "]")
    peaks = []

    def take(self: Writer, *chunk: Any, **options: Any) -> None:
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.reset_peak()
        original(self, *chunk, **options)

    original = Writer.take
    monkeypatch.setattr(Writer, "take", take)
    tracemalloc.start()
    try:
        assert prepare(llava.DATASET, tmp_path / "out", ImageInputs(files=[file], workers=1)) == {"train": rows}
    finally:
        tracemalloc.stop()
    half = len(peaks) // 2
    assert len(peaks) == math.ceil(rows / CHUNK_ROWS)
    assert max(peaks[half:]) < 1.05 * max(peaks[:half]) and max(peaks) < 12 << 20


def test_made_records_are_written_whole_or_not_at_all(tmp_path):
    def failing() -> Iterator[Record]:
        yield qa_record("a", "a.png", [("q", "a")])
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_splits(tmp_path / "out", folder.DATASET, lambda: {"train": failing()})
    assert not (tmp_path / "out").exists()
    twice = [qa_record("a", "a.png", [("q", "a")])] * 2
    with pytest.raises(MmdoraError, match="two records of the id 'a'"):
        write_splits(tmp_path / "out", folder.DATASET, lambda: {"train": twice})


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("v2_OpenEnded_mscoco_test-dev2015_questions.json", "test-dev"), ("testdev_balanced_questions.json", "testdev"),
        ("captions_val2017.json", "val"), ("train-00000-of-00002.parquet", "train"), ("validation.jsonl", "val"),
        ("tvqa_test_public.jsonl", "test"), ("MMBench_DEV_EN.tsv", "dev"), ("problems.json", None),
        ("latest_evaluation.json", None), ("test1.json", "test"),
    ],
)  # fmt: skip
def test_the_split_in_a_name(name: str, split: str | None):
    assert split_of(Path("train") / name) == split


def test_a_split_needs_a_name(tmp_path, root):
    file = table(tmp_path / "rows.jsonl", 2, lambda n, row: row | {"split": "../../evil"})
    with pytest.raises(MmdoraError, match="a split needs a name"):
        prepare(folder.DATASET, tmp_path / "out", ImageInputs(files=[file], images=root))
    assert split_of(file) is None
