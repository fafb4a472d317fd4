"""Shared fixtures. Tests need no network and no GPU."""

from __future__ import annotations

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("HF_DATASETS_CACHE", os.path.join(os.environ.get("TMPDIR", "/tmp"), "mmdora-tests-datasets"))

from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest
import torch

from mmdora.data.record import qa_record
from mmdora.data.records import write_records
from mmdora.data_prep import scenes


@pytest.fixture(autouse=True)
def _seeded() -> Iterator[None]:
    torch.manual_seed(0)
    yield


@pytest.fixture(scope="session")
def tiny_llava() -> str:
    """Folder of the bundled base."""
    from mmdora.models.load import resolve

    return resolve("tiny-llava")


@pytest.fixture(scope="session")
def scene_records(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of 24 drawn records of several turns, every sixth of them text only."""
    folder = tmp_path_factory.mktemp("scenes")
    rows = []
    for number in range(24):
        random = Random(number)
        things, picture = scenes.scene(random)
        picture.save(folder / f"{number}.png")
        row = qa_record(f"scene-{number}", f"{number}.png", scenes.conversation(random, things))
        if number % 6 == 5:
            row["messages"][0]["content"] = row["messages"][0]["content"][1:]
            row["images"] = []
        rows.append(row)
    write_records(folder / "records.jsonl", rows)
    return folder / "records.jsonl"
