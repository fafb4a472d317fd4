"""Shared fixtures. Tests need no network and no GPU."""

from __future__ import annotations

import os
import tempfile

os.environ["HF_HUB_OFFLINE"] = "1"
# This has to be set before datasets is imported. There is one cache for the whole run: pytest-xdist's workers inherit
# it from the process that starts them, which removes it at its end.
if "HF_DATASETS_CACHE" not in os.environ:
    _datasets_cache = tempfile.TemporaryDirectory(prefix="mmdora-tests-datasets-")
    os.environ["HF_DATASETS_CACHE"] = _datasets_cache.name

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from scene_rows import draw_scenes

from mmdora.records.reader import write_records

LONG = [Path(__file__).with_name(name) for name in ("train", "quickstart", "test_bad_inputs.py")]
"""Folders and files that take longest."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put long files first. A worker runs whole files, and the other one would idle beside a long file at the end."""
    items.sort(key=lambda item: not any(item.path.is_relative_to(path) for path in LONG))


@pytest.fixture(autouse=True)
def _seeded() -> Iterator[None]:
    torch.manual_seed(0)
    yield


@pytest.fixture(scope="session")
def tiny_llava() -> str:
    """The folder of the bundled base."""
    from mmdora.models.locate import resolve

    return resolve("tiny-llava")


@pytest.fixture(scope="module")
def loaded(tiny_llava: str) -> tuple[Any, Any]:
    """The base with weights drawn so large that every token before an answer shows in it, and its processor."""
    from transformers import AutoModelForImageTextToText, AutoProcessor

    model = AutoModelForImageTextToText.from_pretrained(tiny_llava).eval()
    torch.manual_seed(0)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.1)
    return model, AutoProcessor.from_pretrained(tiny_llava)


@pytest.fixture(scope="session")
def scene_records(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of 24 drawn records of several turns; every sixth has no picture."""
    folder = tmp_path_factory.mktemp("scenes")
    rows = draw_scenes(folder, range(24))
    for row in rows[5::6]:
        row["messages"][0]["content"] = row["messages"][0]["content"][1:]
        row["images"] = []
    write_records(folder / "records.jsonl", rows)
    return folder / "records.jsonl"


@pytest.fixture(scope="session")
def llava(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a LLaVA in several files, in the hub's legacy layout, in bf16. Tests must not change it."""
    from merged_bases import llava_in_files

    return llava_in_files(tmp_path_factory.mktemp("llava"))


@pytest.fixture(scope="session")
def llava_adapter(llava: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an adapter for `llava` that changes every modality."""
    from merged_bases import ALL, write_adapter

    return write_adapter(llava, ALL, tmp_path_factory.mktemp("adapter"))


@pytest.fixture
def few_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets an export compare only two rows, for tests that are about its files."""
    from mmdora.export import parity

    monkeypatch.setattr(parity, "ROWS", 2)


@pytest.fixture(params=["disk", "memory"])
def route(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Runs a test with both ways to merge: from disk, and in memory."""
    from exports import refuse_disk

    if request.param == "memory":
        refuse_disk(monkeypatch)
    return request.param
