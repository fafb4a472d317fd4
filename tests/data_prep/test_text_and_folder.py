"""Text only (BoolQ, HellaSwag, WinoGrande), and a plain folder of images with a table."""

import json
from pathlib import Path

import pytest
from kept_records import records_in

from mmdora.data_prep import boolq, folder, hellaswag, winogrande
from mmdora.errors import MmdoraError
from mmdora.prepare.inputs import ImageInputs, Inputs
from mmdora.prepare.run import prepare


def test_boolq(official, tmp_path, question_of, answer_of, full_marks):
    rows = [
        {"question": "is france the same timezone as the uk", "passage": "At the Liberation …", "answer": False},
        {"question": "is it", "passage": "It is.", "idx": 17, "label": True},
        {"question": "hidden", "passage": "It is."},
    ]  # fmt: skip
    file = official("dev.jsonl", rows, lines=True)
    assert prepare(boolq.DATASET, tmp_path / "out", Inputs(files=[file])) == {"dev": 3}
    records = records_in(tmp_path / "out/dev.jsonl")
    assert question_of(records[0]) == "At the Liberation …\nis france the same timezone as the uk?"
    assert [answer_of(record) for record in records] == ["no", "yes", None]
    assert full_marks("exact", records)
    path = boolq.write_results(records, {"0": "No.", "17": "Yes, it is", "2": "?"}, tmp_path / "r.jsonl")
    assert [json.loads(line) for line in path.read_text().splitlines()] == [
        {"idx": 0, "label": "false"}, {"idx": 17, "label": "true"}, {"idx": 2, "label": "false"},
    ]  # fmt: skip
    file = official("dev.jsonl", [rows[0] | {"answer": "no"}], lines=True)
    with pytest.raises(MmdoraError, match="neither true nor false"):
        prepare(boolq.DATASET, tmp_path / "other", Inputs(files=[file]))


def test_hellaswag(official, tmp_path, question_of, answer_of, full_marks):
    row = {"ind": 24, "activity_label": "Roof shingle removal", "ctx_a": "A man is sitting on a roof.", "ctx_b": "he",
           "ctx": "A man is sitting on a roof. he", "split": "val", "split_type": "indomain", "label": 3,
           "endings": ["wraps skis.", "rips tiles off.", "holds a cube.", "pulls up roofing."],
           "source_id": "activitynet~v_-JhWjGDPHMY"}  # fmt: skip
    rows = [row, row | {"ind": 30, "label": "1"}, row | {"ind": 31, "label": ""}]
    file = official("hellaswag_val.jsonl", rows, lines=True)
    prepare(hellaswag.DATASET, tmp_path / "out", Inputs(files=[file]))
    records = records_in(tmp_path / "out/val.jsonl")
    assert question_of(records[0]).startswith("Roof shingle removal: A man is sitting on a roof. he\n")
    assert [answer_of(record) for record in records] == ["D", "B", None] and records[0]["meta"]["ind"] == 24
    assert full_marks("choice", records)
    path = hellaswag.write_results(records, {"val-0": "D", "val-1": "Z", "val-2": "wraps skis"}, tmp_path / "r.csv")
    assert path.read_text().splitlines() == [
        "annot_id,ending0,ending1,ending2,ending3",
        "val-0,0.0,0.0,0.0,1.0",
        "val-1,0.0,0.0,0.0,0.0",
        "val-2,1.0,0.0,0.0,0.0",
    ]


def test_winogrande(official, tmp_path, question_of, answer_of, full_marks):
    row = {
        "qID": "3FCO-1",
        "sentence": "Ian ate menudo because _ was hungry.",
        "option1": "Ian",
        "option2": "Dennis",
        "answer": "2",
    }
    bare = {key: value for key, value in row.items() if key != "answer"} | {"qID": "3FCO-2"}
    file = official("train_xs.jsonl", [row, bare], lines=True)
    assert prepare(winogrande.DATASET, tmp_path / "out", Inputs(files=[file], split="train_xs")) == {"train_xs": 2}
    records = records_in(tmp_path / "out/train_xs.jsonl")
    assert [answer_of(record) for record in records] == ["B", None]
    assert question_of(records[0]).splitlines()[2:] == ["A. Ian", "B. Dennis"]
    assert full_marks("choice", records)
    path = winogrande.write_results(records, {"3FCO-1": "dennis", "3FCO-2": "A"}, tmp_path / "predictions.lst")
    assert path.read_text() == "2\n1\n"
    with pytest.raises(MmdoraError, match="one blank"):
        two = official("dev.jsonl", [row | {"sentence": "_ and _"}], lines=True)
        prepare(winogrande.DATASET, tmp_path / "o", Inputs(files=[two]))


TABLE = (
    'image,question,answer,id\na.jpg,"What, then?","two\nlines",q1\nä/b.png,Où?,là,q2\n,no image,x,q3\na.jpg,open,,q4\n'
)


def test_folder_of_csv(picture, tmp_path, question_of, answer_of, records_of):
    root = picture("a.jpg").parent
    picture("ä/b.png", "PNG")
    file = tmp_path / "questions.csv"
    file.write_text("\ufeff" + TABLE, encoding="utf-8")
    assert prepare(folder.DATASET, tmp_path / "out", ImageInputs(files=[file], images=root)) == {"train": 4}
    records = records_in(tmp_path / "out/train.jsonl", root)
    assert [record["id"] for record in records] == ["q1", "q2", "q3", "q4"]
    assert (question_of(records[0]), answer_of(records[0])) == ("What, then?", "two\nlines")
    assert records[1]["images"] == ["ä/b.png"] and records[2]["images"] == [] and answer_of(records[3]) is None
    path = folder.write_results(records, {f"q{n}": "x" for n in range(1, 5)}, tmp_path / "r.jsonl")
    assert records_of(path)[1] == {"id": "q2", "answer": "x"}
    file.write_text(TABLE + "a.jpg,too,many,cells,here\n../a.jpg,q,a,q6\n", encoding="utf-8")
    with pytest.raises(MmdoraError, match=r"questions\.csv:7: 5 cells in a table of 4 columns \(2 bad rows"):
        prepare(folder.DATASET, tmp_path / "out", ImageInputs(files=[file], images=root))


@pytest.mark.parametrize("lines", [True, False])
def test_folder_of_json(lines, official, picture, tmp_path):
    root = picture("a.jpg").parent
    rows = [{"image": "a.jpg", "question": "q", "answer": "a", "split": "test"}, {"question": "q", "answer": "a"}]
    file = official("mine.jsonl" if lines else "mine.json", rows, lines=lines)
    assert prepare(folder.DATASET, tmp_path / "out", ImageInputs(files=[file], images=root)) == {"test": 1, "train": 1}
    assert records_in(tmp_path / "out/train.jsonl", root)[0]["id"] == "mine-1"


def test_folder_mistakes(tmp_path):
    def fails(name: str, data: bytes, message: str) -> None:
        (tmp_path / name).write_bytes(data)
        with pytest.raises(MmdoraError, match=message):
            prepare(folder.DATASET, tmp_path / "out", ImageInputs(files=[tmp_path / name]))
        assert not (tmp_path / "out/train.jsonl").exists()

    fails("a.csv", b"", "begins with the names")
    fails("b.csv", b"image,question,answer\n", "no usable row")
    fails("c.csv", b"image,question,answer\n,\xff,x\n", "not UTF-8")
    fails(
        "d.csv",
        b"image,answer\n,x\n",
        r"no column 'question'; there are image, answer; known are id, image, question, answer, split",
    )
    fails("e.txt", b"x", r"not a file of rows \(\.jsonl, \.json")
    fails("f.parquet", b"x" * 100, "not a readable Parquet file")
    fails("g.json", b"", "expected a JSON list")
    fails("h.jsonl", b'{"question": "\xff"}\n', "not UTF-8")
    fails("i.jsonl", b"\n\n", "no usable row")
    with pytest.raises(MmdoraError, match="no such file"):
        prepare(folder.DATASET, tmp_path / "out", ImageInputs(files=[Path("gone.csv")]))
