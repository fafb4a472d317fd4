"""`--held-out`: a share of the pictures becomes the test split, and no picture is in both."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from kept_records import records_in
from PIL import Image

from mmdora.cli import main
from mmdora.data_prep import folder, llava, messages
from mmdora.errors import MmdoraError
from mmdora.prepare.dataset import Dataset
from mmdora.prepare.inputs import OwnInputs
from mmdora.prepare.run import prepare

PICTURES = 20


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Twenty pictures; each lies there twice, as `N.png` and `copy-N.png`."""
    path = tmp_path / "photos"
    path.mkdir()
    for number in range(PICTURES):
        for name in (f"{number}.png", f"copy-{number}.png"):
            Image.new("RGB", (8, 8), (12 * number, 5, 5)).save(path / name)
    return path


def prepared(root: Path, rows: Sequence[dict], dataset: Dataset = folder.DATASET, **given) -> dict[str, set[str]]:
    """Split -> the names of its pictures, from a run over rows."""
    file, out = root.parent / "mine" / "rows.jsonl", root.parent / "out"
    file.parent.mkdir(exist_ok=True)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    prepare(dataset, out, OwnInputs(files=[file], images=root, **given))
    splits = {split: records_in(out / f"{split}.jsonl", root) for split in ("train", "test")}
    return {split: {image for record in records for image in record["images"]} for split, records in splits.items()}


def asked(*pictures: str) -> list[dict]:
    return [{"image": name, "question": f"What {n}?", "answer": "a"} for n in range(2) for name in pictures]


ALL = [f"{number}.png" for number in range(PICTURES)]


def test_a_picture_is_in_one_split_under_all_of_its_names(root: Path):
    found = prepared(root, asked(*ALL, *(f"copy-{name}" for name in ALL)), held_out=0.2)
    assert len(found["test"]) == 8 and len(found["train"]) == 32
    assert {f"copy-{name}" for name in found["test"] if name in ALL} == found["test"] - set(ALL)
    card = json.loads((root.parent / "out/dataset_card.json").read_text())
    assert all((split["held_out"], split["seed"]) == (0.2, 0) for split in card["splits"].values())


def test_the_seed_decides_and_the_order_does_not(root: Path):
    first = prepared(root, asked(*ALL), held_out=0.2)
    assert prepared(root, asked(*reversed(ALL)), held_out=0.2, workers=1) == first
    assert prepared(root, asked(*ALL), held_out=0.2, seed=1) != first


def test_rows_that_share_pictures_stay_together(root: Path):
    """A chain 0-1, 1-2, … of five pictures is one group; a bad row before them shifts none."""
    chats = [["gone.png"], *(ALL[n : n + 2] for n in range(4)), *([name] for name in ALL[5:])]
    rows = [
        {"messages": [{"role": "user", "content": "<image>" * len(images) + "What?"},
                      {"role": "assistant", "content": "a"}], "images": images} for images in chats
    ]  # fmt: skip
    for seed in range(4):
        found = prepared(root, rows, messages.DATASET, held_out=0.5, seed=seed, skip_bad=True)
        assert not found["train"] & found["test"] and len(found["test"]) == 10


def test_llava_and_rows_without_pictures(root: Path):
    def row(question: str, **image: str) -> dict:
        return {**image, "conversations": [{"from": "human", "value": question}, {"from": "gpt", "value": "a"}]}

    rows = [row("<image>\nWhat?", image=name) for name in ALL] + [row(f"What is {n % 5}?") for n in range(10)]
    prepared(root, rows, llava.DATASET, held_out=0.4)
    asked_in = [
        {record["messages"][0]["content"][-1]["text"] for record in records_in(root.parent / f"out/{split}.jsonl", root)
         if not record["images"]} for split in ("train", "test")
    ]  # fmt: skip
    assert not asked_in[0] & asked_in[1] and len(asked_in[0] | asked_in[1]) == 5


def test_mistakes(root: Path, capsys: pytest.CaptureFixture[str]):
    rows = asked(*ALL)
    for share in (0, 1, -0.5, float("nan")):
        with pytest.raises(MmdoraError, match=r"--held-out .*: give a share of the pictures between 0 and 1"):
            prepared(root, rows, held_out=share)
    with pytest.raises(MmdoraError, match="leave out --split"):
        prepared(root, rows, held_out=0.2, split="train")
    with pytest.raises(MmdoraError, match=r"rows\.jsonl:41: the data say that this row is of the split test"):
        prepared(root, [*rows, rows[0] | {"split": "test"}], held_out=0.2)
    with pytest.raises(MmdoraError, match="all rows are about one picture"):
        prepared(root, asked("1.png", "copy-1.png"), held_out=0.2)
    assert not (root.parent / "out/train.jsonl").exists()
    assert len(prepared(root, asked(*ALL[:2]), held_out=0.2)["test"]) == 1  # One at least.
    table = root.parent / "t.csv"
    table.write_text("file,question,answer\n1.png,What?,a\n")
    command = ["prep", "folder", "--in", str(table), "--images", str(root), "--out", str(root.parent / "o")]
    assert main([*command, "--held-out", "0.2"]) == 2
    assert "'file' looks like a picture and is not read; did you mean 'image'?" in capsys.readouterr().err
