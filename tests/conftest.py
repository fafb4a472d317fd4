"""Shared fixtures. Tests need no network and no GPU."""

from __future__ import annotations

import os
import tempfile

os.environ["HF_HUB_OFFLINE"] = "1"
# Set before datasets is imported. One for the run: pytest-xdist's workers inherit it from the process that starts
# them, which removes it when it ends.
if "HF_DATASETS_CACHE" not in os.environ:
    _datasets_cache = tempfile.TemporaryDirectory(prefix="mmdora-tests-datasets-")
    os.environ["HF_DATASETS_CACHE"] = _datasets_cache.name

from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest
import torch

from mmdora.data_prep import scenes
from mmdora.records.reader import write_records
from mmdora.records.record import qa_record


@pytest.fixture(autouse=True)
def _seeded() -> Iterator[None]:
    torch.manual_seed(0)
    yield


@pytest.fixture(scope="session")
def tiny_llava() -> str:
    """Folder of the bundled base."""
    from mmdora.models.locate import resolve

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


@pytest.fixture(scope="session")
def llava(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a LLaVA of several files in the hub's legacy layout, in bf16; not to be changed."""
    from merged_bases import llava_in_files

    return llava_in_files(tmp_path_factory.mktemp("llava"))


@pytest.fixture(scope="session")
def llava_adapter(llava: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of every modality of it."""
    from merged_bases import ALL, write_adapter

    return write_adapter(llava, ALL, tmp_path_factory.mktemp("adapter"))


@pytest.fixture
def few_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """For tests that ask about an export's files: comparing on two rows is enough."""
    from mmdora.export import parity

    monkeypatch.setattr(parity, "ROWS", 2)


@pytest.fixture(params=["disk", "memory"])
def route(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both ways to merge."""
    from exports import refuse_disk

    if request.param == "memory":
        refuse_disk(monkeypatch)
    return request.param
