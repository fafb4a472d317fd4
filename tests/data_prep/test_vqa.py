"""Open questions: VQAv2, OK-VQA, GQA, TextVQA, VizWiz; official files in, official result files out."""

import json
from pathlib import Path
from typing import Any

import pytest
from kept_records import records_in

from mmdora.data_prep import gqa, okvqa, textvqa, vizwiz, vqav2
from mmdora.errors import MmdoraError
from mmdora.prepare.inputs import ImageInputs, OwnInputs
from mmdora.prepare.results import answers_by_question
from mmdora.prepare.run import prepare


def note(question: int, image: int, answers: list[str], kind: str = "other") -> dict[str, Any]:
    """An annotation as VQA v2 publishes it."""
    return {
        "question_type": "what is",
        "multiple_choice_answer": max(set(answers), key=answers.count),
        "answers": [
            {"answer": answer, "answer_confidence": "yes", "answer_id": number}
            for number, answer in enumerate(answers, 1)
        ],
        "image_id": image,
        "answer_type": kind,
        "question_id": question,
    }


def vqa_files(official, subset: str = "val2014") -> list[Path]:
    questions = [
        {"image_id": 42, "question": "What is it?", "question_id": 42001},
        {"image_id": 42, "question": "Où est la “fête”? 🎈", "question_id": 42000},
        {"image_id": 7, "question": "Is it red?", "question_id": 7003},
    ]
    notes = [
        note(7003, 7, ["yes"] * 9 + ["no"], "yes/no"),
        note(42000, 42, ["à côté"] * 10),
        note(42001, 42, ["net"] * 6 + ["netting"] * 4),
    ]
    head = {"info": {"year": 2017, "version": "2.0"}, "task_type": "Open-Ended", "data_type": "mscoco"}
    licence = {"license": {"name": "CC"}, "data_subtype": subset}
    return [
        official(f"v2_OpenEnded_mscoco_{subset}_questions.json", head | licence | {"questions": questions}),
        official(f"v2_mscoco_{subset}_annotations.json", head | licence | {"annotations": notes}),
    ]


@pytest.fixture
def coco(picture) -> Path:
    picture("val2014/COCO_val2014_000000000042.jpg")
    picture("val2014/COCO_val2014_000000000007.jpg")
    picture("test2015/COCO_test2015_000000000042.jpg")
    return picture("test2015/COCO_test2015_000000000007.jpg").parents[1]


def test_vqav2(official, coco, tmp_path, question_of, answer_of, full_marks):
    out = tmp_path / "out"
    assert prepare(vqav2.DATASET, out, ImageInputs(files=vqa_files(official), images=coco)) == {"val": 3}
    first, french, red = records = records_in(out / "val.jsonl", coco)
    assert first["id"] == "42001" and first["images"] == ["val2014/COCO_val2014_000000000042.jpg"]
    assert (question_of(first), answer_of(first)) == ("What is it?", "net")
    assert first["meta"]["answers"] == ["net"] * 6 + ["netting"] * 4
    assert question_of(french) == "Où est la “fête”? 🎈" and answer_of(french) == "à côté"
    assert red["meta"] | {"answers": 0} == {
        "question_id": 7003, "image_id": 7, "question_type": "what is", "type": "yes/no", "answers": 0,
    }  # fmt: skip
    assert full_marks("vqav2", records)
    said = {"42001": "net", "42000": " là ", "7003": "yes"}
    path = answers_by_question(records, said, tmp_path / "results.json")
    assert json.loads(path.read_text()) == [
        {"question_id": 42001, "answer": "net"},
        {"question_id": 42000, "answer": "là"},
        {"question_id": 7003, "answer": "yes"},
    ]
    with pytest.raises(MmdoraError, match="no prediction for record 42000"):
        answers_by_question(records, {"42001": "net"}, tmp_path / "results.json")


def test_vqav2_without_annotations_is_a_test_set(official, coco, tmp_path, answer_of):
    questions, _ = vqa_files(official, "test-dev2015")
    out = tmp_path / "out"
    assert prepare(vqav2.DATASET, out, ImageInputs(files=[questions], images=coco)) == {"test-dev": 3}
    records = records_in(out / "test-dev.jsonl", coco)
    assert records[0]["images"] == ["test2015/COCO_test2015_000000000042.jpg"]
    assert {answer_of(record) for record in records} == {None} and "answers" not in records[0]["meta"]
    assert json.loads((out / "dataset_card.json").read_text())["splits"]["test-dev"]["unanswered"] == 3


def test_vqav2_takes_own_pictures(official, picture, tmp_path):
    root = picture("cats/a.jpg").parents[1]
    picture("b.jpg")
    asked = [
        {"question_id": 1, "image": "cats/a.jpg", "question": "What is it?"},
        {"question_id": 2, "image_id": "b.jpg", "question": "Where?"},
    ]
    notes = [
        {"question_id": n, "multiple_choice_answer": "cat", "answers": [{"answer": "cat", "answer_id": 1}]}
        for n in (1, 2)
    ]
    files = [
        official("questions.json", {"data_subtype": "mine", "questions": asked}),
        official("annotations.json", {"data_subtype": "mine", "annotations": notes}),
    ]
    inputs = OwnInputs(files=files, images=root, held_out=0.5)
    assert prepare(vqav2.DATASET, tmp_path / "out", inputs) == {"train": 1, "test": 1}
    records = [record for split in ("train", "test") for record in records_in(tmp_path / f"out/{split}.jsonl", root)]
    assert sorted(record["images"][0] for record in records) == ["b.jpg", "cats/a.jpg"]
    assert json.loads((tmp_path / "out/dataset_card.json").read_text())["licence"] is None


def test_vqav2_images_may_lie_flat(official, coco, tmp_path):
    inputs = ImageInputs(files=vqa_files(official), images=coco / "val2014")
    prepare(vqav2.DATASET, tmp_path / "out", inputs)
    assert records_in(tmp_path / "out/val.jsonl", coco / "val2014")[2]["images"] == ["COCO_val2014_000000000007.jpg"]


def test_vqav2_oddities_are_listed(official, coco, tmp_path, records_of, capsys):
    questions, notes = vqa_files(official)
    content = json.loads(questions.read_text())
    content["questions"] += [
        {"image_id": 42, "question": "twice", "question_id": 42001},
        {"image_id": 42, "question": "nobody answered", "question_id": 5},
        {"image_id": 99, "question": "no picture", "question_id": 6},
        {"image_id": 42, "question_id": 8},
        ["no object"],
    ]
    questions.write_text(json.dumps(content, indent=1))
    annotated = json.loads(notes.read_text())
    annotated["annotations"] += [note(6, 99, ["x"] * 10), note(8, 42, ["x"] * 10), note(1234, 42, ["lost"] * 10)]
    notes.write_text(json.dumps(annotated))
    inputs = ImageInputs(files=[questions, notes], images=coco, skip_bad=True)
    assert prepare(vqav2.DATASET, tmp_path / "out", inputs) == {"val": 3}
    bad = records_of(tmp_path / "out/bad_rows.jsonl")
    reasons = {row["row"]: row["reason"] for row in bad}
    assert "comes twice" in reasons[3] and "0 annotations of question 5" in reasons[4]
    assert "COCO_val2014_000000000099.jpg" in reasons[5] and reasons[6] == "no field 'question'"
    assert "question_id" in reasons[7] and len(bad) == 5
    lines = questions.read_text().splitlines()
    assert all(row["file"] == str(questions) and lines[row["line"] - 1].strip() in "{[" for row in bad)
    said = capsys.readouterr().err
    assert "5 bad rows" in said and "1 annotations that belong to no row" in said
    with pytest.raises(MmdoraError, match=r"questions\.json:\d+: the id '42001' comes twice.*\(5 bad rows.*--skip-bad"):
        prepare(vqav2.DATASET, tmp_path / "strict", ImageInputs(files=[questions, notes], images=coco))
    assert not (tmp_path / "strict").exists()


def test_vqav2_files_that_do_not_belong_together(official, coco, tmp_path):
    _, notes = vqa_files(official)
    with pytest.raises(MmdoraError, match="annotations without the questions of val2014"):
        prepare(vqav2.DATASET, tmp_path / "out", ImageInputs(files=[notes], images=coco))
    with pytest.raises(MmdoraError, match="expected data_subtype"):
        prepare(vqav2.DATASET, tmp_path / "out", ImageInputs(files=[official("q.json", {"a": []})], images=coco))


def test_okvqa(official, coco, tmp_path, answer_of, full_marks):
    questions, notes = vqa_files(official)
    annotated = json.loads(notes.read_text())
    for annotation in annotated["annotations"]:
        del annotation["multiple_choice_answer"]
        for answer in annotation["answers"]:
            answer["raw_answer"] = answer["answer"] + "s"
    notes.write_text(json.dumps(annotated))
    prepare(okvqa.DATASET, tmp_path / "out", ImageInputs(files=[notes, questions], images=coco))
    records = records_in(tmp_path / "out/val.jsonl", coco)
    assert answer_of(records[0]) == "net" and records[0]["meta"]["raw_answers"][0] == "nets"
    assert full_marks("okvqa", records)
    path = answers_by_question(records, {record["id"]: "a" for record in records}, tmp_path / "r.json")
    assert json.loads(path.read_text())[0] == {"question_id": 42001, "answer": "a"}


def test_gqa(official, picture, tmp_path, answer_of, full_marks):
    root = picture("n250821.jpg").parent
    full = {
        "semantic": [{"operation": "select", "dependencies": [], "argument": "scene"}],
        "entailed": ["20644645"], "equivalent": ["20644644"], "question": "Which room is it?", "imageId": "n250821",
        "isBalanced": True, "groups": {"global": "room", "local": "02q-room"}, "answer": "bedroom",
        "semanticStr": "select: scene->query: room [0]", "annotations": {"answer": {}, "question": {}},
        "types": {"detailed": "place", "semantic": "global", "structural": "query"}, "fullAnswer": "It is a bedroom.",
    }  # fmt: skip
    bare = {"question": "Is it dark?", "imageId": "n250821", "isBalanced": True}
    file = official("testdev_balanced_questions.json", {"20644644": full, "05": bare})
    answers = {"valid": ["bedroom", "kitchen"], "plausible": ["bedroom"]}
    choices = official("testdev_choices.json", {"20644644": answers})
    inputs = ImageInputs(files=[file, choices], images=root)
    assert prepare(gqa.DATASET, tmp_path / "out", inputs) == {"testdev": 2}
    room, dark = records = records_in(tmp_path / "out/testdev.jsonl", root)
    assert room["id"] == "20644644" and answer_of(room) == "bedroom" and room["meta"]["type"] == "query"
    assert room["meta"]["groups"] == full["groups"] and room["meta"]["entailed"] == ["20644645"]
    assert room["meta"]["choices"] == answers and room["meta"]["isBalanced"] is True
    assert dark["id"] == "05" and answer_of(dark) is None
    assert full_marks("gqa", records)
    path = gqa.write_results(records, {"20644644": "Bedroom.", "05": "no"}, tmp_path / "r.json")
    assert json.loads(path.read_text()) == [
        {"questionId": "20644644", "prediction": "bedroom"},
        {"questionId": "05", "prediction": "no"},
    ]


def test_textvqa_with_ocr(official, picture, tmp_path, answer_of, full_marks):
    root = picture("train_images/003a8ae2ef43b901.jpg").parents[1]
    row = {
        "question": "what is the brand?", "question_id": 34602, "question_tokens": ["what"], "set_name": "val",
        "image_id": "003a8ae2ef43b901", "image_classes": ["Camera"], "image_width": 1024, "image_height": 664,
        "flickr_original_url": "http://farm2.staticflickr.com/x.jpg", "flickr_300k_url": "http://c4.staticflickr.com/x",
        "answers": ["nous les gosses", "dakota"] + ["dakota digital"] * 8,
    }  # fmt: skip
    questions = official("TextVQA_0.5.1_val.json", {"dataset_type": "val", "data": [row]})
    tokens = [{"image_id": row["image_id"], "ocr_tokens": ["DAKOTA"]}, {"image_id": "other", "ocr_tokens": []}]
    ocr = official("TextVQA_Rosetta_OCR_v0.2_val.json", {"data": tokens})
    prepare(textvqa.DATASET, tmp_path / "out", ImageInputs(files=[questions, ocr], images=root))
    (record,) = records_in(tmp_path / "out/val.jsonl", root)
    assert record["images"] == ["train_images/003a8ae2ef43b901.jpg"] and answer_of(record) == "dakota digital"
    assert record["meta"]["ocr_tokens"] == ["DAKOTA"] and len(record["meta"]["answers"]) == 10
    assert full_marks("textvqa", [record])
    path = answers_by_question([record], {"34602": "dakota"}, tmp_path / "r.json")
    assert json.loads(path.read_text()) == [{"question_id": 34602, "answer": "dakota"}]


def test_vizwiz(official, picture, tmp_path, answer_of, full_marks):
    root = picture("val/VizWiz_val_00000000.jpg").parents[1]
    picture("test/VizWiz_test_00000000.jpg")
    answers = [
        {"answer_confidence": "yes", "answer": "basil"},
        {"answer_confidence": "maybe", "answer": "basil leaves"},
    ]
    row = {"image": "VizWiz_val_00000000.jpg", "question": "What's this?", "answers": answers + answers[:1] * 8,
           "answer_type": "other", "answerable": 1}  # fmt: skip
    test = {"image": "VizWiz_test_00000000.jpg", "question": "And this?"}
    files = [official("val.json", [row]), official("test.json", [test])]
    counts = prepare(vizwiz.DATASET, tmp_path / "out", ImageInputs(files=files, images=root))
    assert counts == {"val": 1, "test": 1}
    (record,) = records_in(tmp_path / "out/val.jsonl", root)
    assert record["images"] == ["val/VizWiz_val_00000000.jpg"] and answer_of(record) == "basil"
    assert record["meta"]["confidences"][:2] == ["yes", "maybe"] and record["meta"]["answerable"] == 1
    assert full_marks("vizwiz", [record])
    (unanswered,) = records_in(tmp_path / "out/test.jsonl", root)
    said = {unanswered["id"]: "Unanswerable."}
    path = vizwiz.write_results([unanswered], said, tmp_path / "r.json")
    assert json.loads(path.read_text()) == [{"image": "VizWiz_test_00000000.jpg", "answer": "Unanswerable."}]
