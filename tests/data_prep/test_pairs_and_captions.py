"""NLVR2's two images that are not PNG, and COCO captions in both layouts."""

import json
from pathlib import Path

import pytest
from kept_records import records_in

from mmdora.data_prep import coco_captions, nlvr2
from mmdora.errors import MmdoraError
from mmdora.prepare.inputs import ImageInputs
from mmdora.prepare.run import prepare
from mmdora.records.images import FileRef, open_image


def nlvr2_row(identifier: str, label: str | None, **fields) -> dict:
    row = {
        "validation": [[27, label]], "sentence": "Both images show two dogs.", "left_url": "https://x.org/l.jpg",
        "writer": 4, "right_url": "https://x.org/r.jpg", "query": "two dogs0", "extra_validations": [[1, "True"]],
        "label": label, "synset": "dog", "identifier": identifier,
    } | fields  # fmt: skip
    return row if label is not None else {key: value for key, value in row.items() if key != "label"}


def test_nlvr2(official, picture, tmp_path, answer_of, full_marks):
    kinds = {"dev-850-0-img0.png": "JPEG", "dev-850-0-img1.png": "GIF", "dev-850-1-img0.png": "PNG",
             "dev-850-1-img1.png": "WEBP"}  # fmt: skip
    for name, kind in kinds.items():
        picture(f"dev/{name}", kind)
    root = tmp_path / "images"
    rows = [
        nlvr2_row("dev-850-0-0", "True"),
        nlvr2_row("dev-850-1-0", "False"),
        nlvr2_row("dev-850-1-1", None),
    ]
    file = official("dev.json", rows, lines=True)
    assert prepare(nlvr2.DATASET, tmp_path / "out", ImageInputs(files=[file], images=root)) == {"dev": 3}
    first, *_ = records = records_in(tmp_path / "out/dev.jsonl", root)
    assert first["images"] == ["dev/dev-850-0-img0.png", "dev/dev-850-0-img1.png"]
    assert [part["type"] for part in first["messages"][0]["content"]] == ["image", "image", "text"]
    assert all(open_image(FileRef(name, root)).size == (8, 6) for record in records for name in record["images"])
    assert [answer_of(record) for record in records] == ["true", "false", None]
    assert [record["meta"]["identifier"] for record in records] == ["dev-850-0-0", "dev-850-1-0", "dev-850-1-1"]
    assert full_marks("nlvr2", records)
    said = {"dev-850-0-0": "True", "dev-850-1-0": "yes", "dev-850-1-1": "well, no"}
    path = nlvr2.write_results(records, said, tmp_path / "predictions.csv")
    # as eval/metrics.py reads it: split at commas, first the identifier
    read = dict(line.strip().split(",") for line in path.read_text().splitlines())
    assert read == {"dev-850-0-0": "True", "dev-850-1-0": "True", "dev-850-1-1": "well  no"}


def test_nlvr2_training_images_lie_in_numbered_folders(official, picture, tmp_path):
    for side in (0, 1):
        picture(f"train/57/train-4100-2-img{side}.png")
    file = official("train.json", [nlvr2_row("train-4100-2-0", "True", directory=57)], lines=True)
    prepare(nlvr2.DATASET, tmp_path / "out", ImageInputs(files=[file], images=tmp_path / "images"))
    (record,) = records_in(tmp_path / "out/train.jsonl", tmp_path / "images")
    assert record["images"] == ["train/57/train-4100-2-img0.png", "train/57/train-4100-2-img1.png"]
    with pytest.raises(MmdoraError, match="neither True nor False"):
        bad = official("dev.json", [nlvr2_row("train-4100-2-0", "Maybe")], lines=True)
        prepare(nlvr2.DATASET, tmp_path / "out", ImageInputs(files=[bad], images=tmp_path / "images"))


@pytest.fixture
def coco(picture) -> Path:
    picture("val2014/COCO_val2014_000000391895.jpg")
    picture("val2014/COCO_val2014_000000000042.jpg")
    return picture("train2014/COCO_train2014_000000000009.jpg").parents[1]


def captions_file(official, split: str, ids: list[int], captions: list[tuple[int, str]]) -> Path:
    images = [
        {"license": 3, "file_name": f"COCO_{split}2014_{i:012d}.jpg", "id": i, "height": 6, "width": 8} for i in ids
    ]
    notes = [{"image_id": image, "id": 30 + n, "caption": words} for n, (image, words) in enumerate(captions)]
    content = {"info": {"year": 2014}, "images": images, "licenses": [{"id": 3}], "annotations": notes}
    return official(f"captions_{split}2014.json", content)


def test_coco_official(official, coco, tmp_path, answer_of):
    val = captions_file(official, "val", [391895, 42], [(42, "A dog. "), (391895, "A man."), (42, "Ein Hund läuft.")])
    train = captions_file(official, "train", [9], [(9, "Food."), (9, "Lunch.")])
    out = tmp_path / "out"
    counts = prepare(coco_captions.DATASET, out, ImageInputs(files=[val, train], images=coco))
    assert counts == {"val": 2, "train": 2}
    man, dog = records = records_in(out / "val.jsonl", coco)
    assert (man["id"], dog["meta"]["references"]) == ("391895", ["A dog.", "Ein Hund läuft."])
    assert answer_of(dog) == "A dog." and dog["images"] == ["val2014/COCO_val2014_000000000042.jpg"]
    food, lunch = records_in(out / "train.jsonl", coco)
    assert (answer_of(food), answer_of(lunch), lunch["id"], lunch["meta"]["image_id"]) == ("Food.", "Lunch.", "31", 9)
    path = coco_captions.write_results(records, {"391895": " a man", "42": "a dog"}, tmp_path / "r.json")
    assert json.loads(path.read_text()) == [
        {"image_id": 391895, "caption": "a man"},
        {"image_id": 42, "caption": "a dog"},
    ]


def test_coco_image_without_caption_and_caption_without_image(official, coco, tmp_path, capsys):
    file = captions_file(official, "val", [391895, 42], [(391895, "A man."), (7, "lost")])
    inputs = ImageInputs(files=[file], images=coco, skip_bad=True)
    assert prepare(coco_captions.DATASET, tmp_path / "out", inputs) == {"val": 1}
    assert "image 42 has no caption" in (tmp_path / "out/bad_rows.jsonl").read_text()
    assert "1 annotations that belong to no row" in capsys.readouterr().err


def test_coco_test_images_have_no_captions(official, coco, tmp_path, answer_of):
    content = {"images": [{"file_name": "COCO_val2014_000000000042.jpg", "id": 42}], "categories": []}
    file = official("image_info_test2014.json", content)
    prepare(coco_captions.DATASET, tmp_path / "out", ImageInputs(files=[file], images=coco / "val2014"))
    (record,) = records_in(tmp_path / "out/test.jsonl", coco / "val2014")
    assert answer_of(record) is None and "references" not in record["meta"]


def test_coco_karpathy(official, coco, tmp_path, answer_of):
    def image(split: str, folder: str, number: int, *captions: str) -> dict:
        sentences = [{"tokens": words.lower().split(), "raw": words, "imgid": number, "sentid": number * 10 + n}
                     for n, words in enumerate(captions)]  # fmt: skip
        return {"filepath": folder, "sentids": [], "filename": f"COCO_{folder}_{number:012d}.jpg", "imgid": 0,
                "split": split, "sentences": sentences, "cocoid": number}  # fmt: skip

    images = [
        image("test", "val2014", 391895, "A man.", "A rider."),
        image("restval", "val2014", 42, "A dog.", "A hound."),
        image("train", "train2014", 9, "Food."),
    ]
    file = official("dataset_coco.json", {"images": images, "dataset": "coco"})
    out = tmp_path / "out"
    counts = prepare(coco_captions.DATASET, out, ImageInputs(files=[file], images=coco))
    assert counts == {"test": 1, "train": 3}
    assert [r["meta"]["karpathy_split"] for r in records_in(out / "train.jsonl", coco)] == ["restval"] * 2 + ["train"]
    (man,) = records_in(out / "test.jsonl", coco)
    assert man["meta"]["references"] == ["A man.", "A rider."] and man["meta"]["image_id"] == 391895
