"""Videos with feature files: TVQA, How2QA, TVC, YC2C."""

import json
from pathlib import Path

import numpy as np
import pytest
from kept_records import records_in

from mmdora.data_prep import how2qa, tvc, tvqa, yc2c
from mmdora.errors import MmdoraError
from mmdora.prepare.inputs import VideoInputs
from mmdora.prepare.run import prepare

CLIP = "friends_s04e20_seg02_clip_07"


@pytest.fixture
def features(tmp_path: Path) -> Path:
    root = tmp_path / "features"
    root.mkdir()
    np.savez_compressed(root / f"{CLIP}.npz", features=np.zeros((41, 4), np.float16), fps=np.array(1.5))
    np.savez(root / "iuQjb1-WAzs_0.npz", np.zeros((7, 4), np.float32))  # one array, by no name
    np.save(root / "12.npy", np.zeros((9, 4), np.float32))
    return root


def tvqa_row(**fields) -> dict:
    return {
        "a0": "A martini glass", "a1": "Nachos", "a2": "Her purse", "a3": "Marshall's book", "a4": "A beer bottle",
        "answer_idx": 4, "q": "What is Robin holding?", "qid": 7, "ts": "1.21-8.49", "vid_name": CLIP,
        "show_name": "Friends",
    } | fields  # fmt: skip


def test_tvqa(official, features, tmp_path, question_of, answer_of, full_marks):
    hidden = {key: value for key, value in tvqa_row(qid=9).items() if key != "answer_idx"}
    file = official("tvqa_val.jsonl", [tvqa_row(), tvqa_row(qid=8, ts="nan-nan"), hidden], lines=True)
    speech = [{"text": " Ross : Hi. ", "start": 0.8, "end": 1.8}, {"text": "Hey!", "start": 2, "end": 3}]
    subtitles = official("tv_subtitles.jsonl", [{"vid_name": CLIP, "sub": speech}], lines=True)
    inputs = VideoInputs(files=[file], features=features, subtitles=subtitles)
    assert prepare(tvqa.DATASET, tmp_path / "out", inputs) == {"val": 3}
    first, unmarked, unanswered = records = records_in(tmp_path / "out/val.jsonl")
    assert question_of(first).splitlines()[0] == "What is Robin holding?" and answer_of(first) == "E"
    assert first["images"] == [] and first["meta"]["features"] == f"{CLIP}.npz" and first["meta"]["frames"] == 41
    assert first["meta"]["ts"] == "1.21-8.49" and unmarked["meta"]["ts"] == "nan-nan"
    assert first["meta"]["subtitles"] == "Ross : Hi. Hey!" and answer_of(unanswered) is None
    assert full_marks("choice", records)
    path = tvqa.write_results(records, {"7": "E", "8": "nachos", "9": "?"}, tmp_path / "r.json")
    assert json.loads(path.read_text()) == {"7": 4, "8": 1, "9": -1}
    card = json.loads((tmp_path / "out/dataset_card.json").read_text())["splits"]["val"]
    assert {Path(entry["file"]).name for entry in card["inputs"]} == {"tvqa_val.jsonl", "tv_subtitles.jsonl"}


def test_how2qa(official, features, tmp_path, full_marks):
    row = {"a0": "a", "a1": "b", "a2": "c", "a3": "d", "answer_idx": 2, "q": "How many?", "qid": 5, "ts": "0.0-9.2",
           "vid_name": 12}  # fmt: skip
    file = official("how2qa_val_release.jsonl", [row], lines=True)
    prepare(how2qa.DATASET, tmp_path / "out", VideoInputs(files=[file], features=features))
    records = records_in(tmp_path / "out/val.jsonl")
    assert records[0]["meta"] | {"ts": 0} == {
        "question": "How many?", "choices": ["a", "b", "c", "d"], "answer": 2, "qid": 5, "vid_name": 12, "ts": 0,
        "features": "12.npy", "frames": 9,
    }  # fmt: skip
    assert full_marks("choice", records)
    path = how2qa.write_results(records, {"5": "(C)"}, tmp_path / "r.json")
    assert json.loads(path.read_text()) == {"5": 2}


@pytest.mark.parametrize(("module", "video"), [(tvc, CLIP), (yc2c, "iuQjb1-WAzs_0")])
def test_captions(module, video, official, features, tmp_path, answer_of):
    texts = [
        {"desc": "Joey closes it. ", "desc_id": 62633, "type": "v"},
        {"desc": "He smiles.", "desc_id": 62634, "type": "vt"},
    ]
    row = {"vid_name": video, "duration": 94.03, "ts": [35.73, 40.9], "descs": texts, "clip_id": 86602}
    hidden = {key: value for key, value in row.items() if key not in ("descs", "ts")}
    files = [official(f"{module.DATASET.name}_{split}_release.jsonl", rows, lines=True)
             for split, rows in (("train", [row]), ("val", [row]), ("test", [hidden]))]  # fmt: skip
    out = tmp_path / "out"
    counts = prepare(module.DATASET, out, VideoInputs(files=files, features=features))
    assert counts == {"train": 2, "val": 1, "test": 1}
    assert [answer_of(record) for record in records_in(out / "train.jsonl")] == ["Joey closes it.", "He smiles."]
    (val,), (test,) = records_in(out / "val.jsonl"), records_in(out / "test.jsonl")
    assert val["meta"]["references"] == ["Joey closes it.", "He smiles."] and answer_of(test) is None
    path = module.write_results([val], {"86602": "joey reads"}, tmp_path / "r.jsonl")
    assert json.loads(path.read_text()) == {
        "vid_name": video, "clip_id": 86602, "ts": [35.73, 40.9], "descs": [{"desc": "joey reads"}],
    }  # fmt: skip


def test_feature_files_that_cannot_be_used(official, features, tmp_path, records_of):
    (features / "words.npz").write_text("no archive")
    np.save(features / "objects.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    np.save(features / "empty.npy", np.zeros((0, 4)))
    np.savez(features / "two.npz", a=np.zeros(3), b=np.zeros(3))
    (features / "out.npz").symlink_to(tmp_path / "secret.npz")
    np.savez(tmp_path / "secret.npz", features=np.zeros((3, 3)))
    names = ["words", "objects", "empty", "two", "out", "gone", "../secret"]
    rows = [tvqa_row(), *(tvqa_row(qid=n, vid_name=name) for n, name in enumerate(names, 100))]
    file = official("tvqa_train.jsonl", rows, lines=True)
    file.write_text(file.read_text() + '{"cut": ')
    inputs = VideoInputs(files=[file], features=features, skip_bad=True)
    assert prepare(tvqa.DATASET, tmp_path / "out", inputs) == {"train": 1}
    reasons = [row["reason"] for row in records_of(tmp_path / "out/bad_rows.jsonl")]
    words = ["BadZipFile", "ValueError", "ValueError", "KeyError", "outside", "no such file", "outside", "broken JSON"]
    assert all(word in reason for word, reason in zip(words, reasons, strict=True))
    with pytest.raises(MmdoraError, match="no such file or folder"):
        prepare(tvqa.DATASET, tmp_path / "x", VideoInputs(files=[file], features=tmp_path / "none"))
