"""Multiple choice and existence: ScienceQA, MMBench, POPE."""

import base64
import csv
import json
import sys
from pathlib import Path
from typing import Any

import pandas
import pytest
from kept_records import records_in

from mmdora.data_prep import mmbench, pope, scienceqa
from mmdora.errors import MmdoraError
from mmdora.prepare.inputs import ImageInputs
from mmdora.prepare.record import choice, chosen
from mmdora.prepare.run import prepare
from mmdora.records.images import FileRef, open_image
from mmdora.records.record import check_record
from mmdora.records.row import row_of


def problem(**fields) -> dict:
    return {
        "question": "Which is a solid?", "choices": ["milk", "a stone", "air"], "answer": 1, "hint": "", "image": None,
        "task": "closed choice", "grade": "grade2", "subject": "natural science", "topic": "chemistry",
        "category": "matter", "skill": "classify", "lecture": "Solids keep …", "solution": "Stone.", "split": "test",
    } | fields  # fmt: skip


def test_scienceqa(official, picture, tmp_path, question_of, answer_of, full_marks):
    root = picture("test/2/image.png", "PNG").parents[2]
    picture("train/3/image.png", "PNG")
    problems = {
        "1": problem(hint="A stone is hard."),
        "2": problem(image="image.png", choices=["a", "b"], answer=0),
        "3": problem(image="image.png", split="train"),
        "4": problem(split="val"),
        "5": problem(answer=3),
        "6": problem(image="gone.png"),
    }
    file = official("problems.json", problems)
    with pytest.raises(MmdoraError, match=r"problems\.json: row 4: the answer 3 is none of the 3 choices"):
        prepare(scienceqa.DATASET, tmp_path / "out", ImageInputs(files=[file], images=root))
    inputs = ImageInputs(files=[file], images=root, skip_bad=True)
    assert prepare(scienceqa.DATASET, tmp_path / "out", inputs) == {"test": 2, "train": 1, "val": 1}
    hinted, pictured = records = records_in(tmp_path / "out/test.jsonl", root)
    assert question_of(hinted) == "A stone is hard.\nWhich is a solid?\nA. milk\nB. a stone\nC. air"
    assert answer_of(hinted) == "B" and hinted["meta"]["type"] == "text" and pictured["meta"]["type"] == "image"
    assert pictured["images"] == ["test/2/image.png"] and pictured["meta"]["choices"] == ["a", "b"]
    assert full_marks("scienceqa", records)
    path = scienceqa.write_results(records, {"1": "B. a stone", "2": "no idea"}, tmp_path / "r.json")
    assert json.loads(path.read_text()) == {"results": {"1": 1, "2": -1}}


@pytest.mark.parametrize(
    ("text", "index"),
    [("B", 1), ("(C)", 2), ("A.", 0), ("B. whatever", 1), ("a dog", 0), ("A dog.", 0), ("A cat is here", None),
     ("D", None), ("", None), ("Because", None), ("b", None)],
)  # fmt: skip
def test_what_a_text_chooses(text: str, index: int | None):
    assert chosen(text, ["A dog", "two", "three"]) == index


def picture_cell(picture, name: str, kind: str = "JPEG") -> str:
    return base64.b64encode(picture(name, kind).read_bytes()).decode()


HEAD = ["index", "question", "hint", "A", "B", "C", "D", "answer", "category", "image", "source", "l2-category",
        "comment", "split"]  # fmt: skip


def tsv(path: Path, rows: list[list[str]]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, "excel-tab", lineterminator="\n").writerows([HEAD, *rows])
    return path


def mmbench_row(index: int, image: str, **fields: str) -> list[str]:
    row = {"index": str(index), "question": "Which, \"a\" or 'b'?", "A": "a\nof two lines", "B": "b", "C": "nan",
           "answer": "A", "category": "ocr", "image": image, "l2-category": "perception", "split": "dev"}  # fmt: skip
    return [(row | fields).get(name, "") for name in HEAD]


def test_mmbench(picture, tmp_path, question_of, answer_of, full_marks):
    cell = picture_cell(picture, "one.jpg")
    other = picture_cell(picture, "two.png", "PNG")
    rows = [
        mmbench_row(1_000_241, "241", A="b", B="a\nof two lines", answer="B"),  # CircularEval, before its owner
        mmbench_row(241, cell, hint="Look: 中文"),
        mmbench_row(252, other, answer="", D=""),
    ]
    file = tsv(tmp_path / "mmbench_dev_en_20231003.tsv", rows)
    out = tmp_path / "out"
    assert prepare(mmbench.DATASET, out, ImageInputs(files=[file])) == {"dev": 3}
    shifted, plain, unanswered = records = records_in(out / "dev.jsonl")
    assert question_of(plain) == "Look: 中文\nWhich, \"a\" or 'b'?\nA. a\nof two lines\nB. b"
    assert (answer_of(plain), answer_of(shifted), answer_of(unanswered)) == ("A", "B", None)
    assert shifted["images"] == plain["images"] != unanswered["images"]
    assert (out / plain["images"][0]).read_bytes() == (tmp_path / "images/one.jpg").read_bytes()
    assert open_image(FileRef(unanswered["images"][0], out)).size == (8, 6) and unanswered["images"][0].endswith(".png")
    assert plain["meta"]["l2_category"] == "perception" and shifted["meta"]["index"] == 1_000_241
    assert full_marks("mmbench", records)
    said = {"241": "A & <b>", "1000241": "=1+1", "252": "b\x00"}
    path = mmbench.write_results(records, said, tmp_path / "r.xlsx")
    table: Any = pandas.read_excel(path)  # as VLMEvalKit and MMBench's server read it
    assert list(table) == ["index", "question", "A", "B", "C", "D", "prediction", "category", "l2_category"]
    assert table["index"].tolist() == [1_000_241, 241, 252] and table["D"].isna().all()
    assert table["A"][1] == "a\nof two lines" and table["question"][1] == "Which, \"a\" or 'b'?"
    assert table["prediction"].tolist() == ["=1+1", "A & <b>", "b"], "no formula, no control character"
    assert table["l2_category"][1] == "perception"


def test_a_missing_openpyxl_is_told_before_anything_is_answered(monkeypatch, tmp_path):
    from mmdora.evaluate.run import evaluate

    monkeypatch.setitem(sys.modules, "openpyxl", None)
    results = mmbench.DATASET.results
    assert results is not None
    for call in (results.check, lambda: results.write([], {}, tmp_path / "r.xlsx")):
        with pytest.raises(MmdoraError, match=r"needs openpyxl: pip install 'mmdora\[eval\]'"):
            call()
    with pytest.raises(MmdoraError, match="needs openpyxl"):
        question = check_record(choice("1", [], "q", ["a", "b"], 0, index=1), "1")
        evaluate(None, None, [row_of(question, tmp_path)], task="mmbench", out=tmp_path / "out")


def test_mmbench_oddities(picture, tmp_path, records_of):
    cell = picture_cell(picture, "one.jpg")
    rows = [
        mmbench_row(1, cell),
        mmbench_row(2, "77"),
        mmbench_row(3, "!" * 80),
        mmbench_row(4, base64.b64encode(b"no picture" * 9).decode()),
        mmbench_row(5, cell, answer="D"),
        mmbench_row(6, cell, B="", C="c"),
        ["7", "short"],
        mmbench_row(1, cell),
    ]
    file = tsv(tmp_path / "mmbench_dev.tsv", rows)
    prepare(mmbench.DATASET, tmp_path / "out", ImageInputs(files=[file], skip_bad=True))
    bad = {row["row"]: (row["line"], row["reason"]) for row in records_of(tmp_path / "out/bad_rows.jsonl")}
    words = {1: "row 77", 2: "base64", 3: "not an image", 4: "the answer 'D'", 5: "have a gap", 6: "2 cells",
             7: "comes twice"}  # fmt: skip
    assert bad.keys() == words.keys()
    assert all(word in bad[number][1] for number, word in words.items())
    assert bad[1][0] == 4  # every row takes two lines: one of its cells has a line break


def test_pope(official, picture, tmp_path, answer_of, full_marks):
    root = picture("COCO_val2014_000000016631.jpg").parent
    rows = [
        {"question_id": 1, "image": "COCO_val2014_000000016631.jpg", "text": "Is there a person?", "label": "yes"},
        {"question_id": 2, "image": "COCO_val2014_000000016631.jpg", "text": "Is there a fridge?", "label": "no"},
    ]
    files = [official(f"coco_pope_{name}.json", rows, lines=True) for name in ("random", "adversarial")]
    counts = prepare(pope.DATASET, tmp_path / "out", ImageInputs(files=files, images=root))
    assert counts == {"random": 2, "adversarial": 2}
    records = records_in(tmp_path / "out/random.jsonl", root)
    assert [answer_of(record) for record in records] == ["yes", "no"] and records[0]["id"] == "random-1"
    assert full_marks("pope", records)
    said = {"random-1": "Yes, there is.", "random-2": "no"}
    path = pope.write_results(records, said, tmp_path / "answers.json")
    assert [json.loads(line) for line in path.read_text().splitlines()] == [
        {"question": "Is there a person?", "answer": "Yes, there is."},
        {"question": "Is there a fridge?", "answer": "no"},
    ]
    with pytest.raises(MmdoraError, match="neither yes nor no"):
        maybe = official("coco_pope_popular.json", [rows[0] | {"label": "maybe"}], lines=True)
        prepare(pope.DATASET, tmp_path / "out", ImageInputs(files=[maybe], images=root))
