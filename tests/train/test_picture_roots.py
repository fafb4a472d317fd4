"""Tasks whose folders hold different pictures under one name: every way to a model opens a row's own picture."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_run import config_of, silent

from mmdora.batches.shards import Shards
from mmdora.cli import main
from mmdora.errors import MmdoraError
from mmdora.families import Family
from mmdora.records.reader import read_records, write_records
from mmdora.records.record import qa_record
from mmdora.train import train

COLOURS = {"first": "red", "second": "blue"}
RGB = {"red": (255, 0, 0), "blue": (0, 0, 255)}


@pytest.fixture
def folders(tmp_path: Path) -> dict[str, Path]:
    """Two folders of records; both name `x.png`, which is red in one and blue in the other."""
    for name, colour in COLOURS.items():
        folder = tmp_path / name
        (folder / "pictures").mkdir(parents=True)
        Image.new("RGB", (64, 64), colour).save(folder / "pictures" / "x.png")
        for split, question in (("train", "Which colour?"), ("test", "What colour is it?")):
            rows = [qa_record(f"{name}-{split}-{i}", "x.png", [(question, colour)]) for i in range(2)]
            write_records(folder / f"{split}.jsonl", rows)
        card = {"name": "folder", "splits": {"test": {"file": "test.jsonl", "images_root": str(folder / "pictures")}}}
        (folder / "dataset_card.json").write_text(json.dumps(card))
    return {name: tmp_path / name for name in COLOURS}


class Watched:
    """Notes the colour that each row's or prompt's picture has when the family gets it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch):
        self.learned: list[tuple[str, str]] = []  # (name of a row, colour)
        self.asked: list[str] = []  # colours in the order of the prompts
        batch, encode_prompts = Family.batch, Family.encode_prompts

        def watched_batch(family: Family, rows: Any, features: Any = None) -> Any:
            made = batch(family, rows, features)
            self.learned += [(row["id"], colour(family, p)) for row, p in zip(rows, made["pixel_values"], strict=True)]
            return made

        def watched_prompts(family: Family, prompts: Any) -> Any:
            made = encode_prompts(family, prompts)
            self.asked += [colour(family, pixels) for pixels in made["pixel_values"]]
            return made

        monkeypatch.setattr(Family, "batch", watched_batch)
        monkeypatch.setattr(Family, "encode_prompts", watched_prompts)


def colour(family: Family, pixels: torch.Tensor) -> str:
    """The colour of a picture, from the pixels [3, H, W] that the model gets."""
    images = family.processor.image_processor
    mean, std = (np.array(value)[:, None, None] for value in (images.image_mean, images.image_std))
    seen = (pixels.numpy() * std + mean).mean((1, 2))
    return min(RGB, key=lambda name: float(np.abs(seen - np.array(RGB[name]) / 255).sum()))


def test_training_and_its_evaluation_open_each_tasks_own_pictures(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    watched = Watched(monkeypatch)
    tasks = {
        name: {
            "train": str(folder / "train.jsonl"),
            "eval": str(folder / "test.jsonl"),
            "images": str(folder / "pictures"),
        }
        for name, folder in folders.items()
    }
    train(
        config_of(
            {
                "model": {"base": "tiny-llava"},
                "adapt": {"projector": {"method": "lora", "rank": 1}},
                "data": {"tasks": tasks, "eval_generate_rows": 2},
                "training": {"output": str(tmp_path / "run"), "steps": 2, "batch_size": 2, "eval_every": 2,
                             "save_every": 2, "report_to": []},
            }
        ),
        say=silent,
    )  # fmt: skip
    kinds = {name.rpartition("-")[0] for name, _ in watched.learned}
    assert kinds == {f"{name}-{split}" for name in COLOURS for split in ("train", "test")}
    assert all(COLOURS[name.partition("-")[0]] == seen for name, seen in watched.learned)
    assert sorted(watched.asked) == ["blue", "blue", "red", "red"]


@pytest.mark.parametrize("stream", [False, True])
def test_pictures_are_found_by_the_card(folders: dict[str, Path], stream: bool):
    folder = folders["first"]
    open_rows = Shards if stream else read_records
    assert open_rows(folder / "test.jsonl").root == folder / "pictures"
    assert open_rows(folder / "train.jsonl").root == folder  # The card does not name this file.
    assert open_rows(folder / "test.jsonl", folder).root == folder
    (folder / "pictures").rename(folder / "moved")
    with pytest.raises(
        MmdoraError, match=r"the pictures of test.jsonl lay in .*; say where they are with data\.images"
    ):
        open_rows(folder / "test.jsonl")
    (folder / "dataset_card.json").write_text("[]")
    with pytest.raises(MmdoraError, match="not a dataset card"):
        open_rows(folder / "test.jsonl")


def test_inspect_finds_pictures_by_the_card(folders: dict[str, Path]):
    assert main(["inspect", "tiny-llava", "--data", str(folders["first"] / "test.jsonl")]) == 0


def test_eval_opens_each_splits_own_pictures(folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Two splits that are evaluated together, as POPE's three are, have each a root of their own."""
    watched = Watched(monkeypatch)
    entries = {
        name: {"file": f"../{name}/test.jsonl", "images_root": str(folder / "pictures")}
        for name, folder in folders.items()
    }
    (tmp_path / "both").mkdir()
    (tmp_path / "both" / "dataset_card.json").write_text(json.dumps({"name": "folder", "splits": entries}))
    command = ["eval", "tiny-llava", "--data", str(tmp_path / "both"), "--task", "exact", "--split", "first+second"]
    assert main([*command, "--out", str(tmp_path / "out"), "--batch-size", "4"]) == 0
    written = list((tmp_path / "out").rglob("predictions.jsonl"))
    assert len(written) == 1 and len(written[0].read_text().splitlines()) == 4
    assert sorted(watched.asked) == ["blue", "blue", "red", "red"]
