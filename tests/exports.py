"""Makes adapters of tiny-llava to export, and run folders around them, and chooses the way of merging."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

import mmdora
import mmdora.export.run as room
from mmdora.adapt.inject import trainable_parameters
from mmdora.config import RunConfig, validate
from mmdora.export.shards import UnsureError

DORA = {
    "vision": {"method": "dora", "rank": 2},
    "projector": {"method": "full"},
    "language": {"method": "dora", "rank": 4, "targets": ["attention", "mlp"]},
}


def moved_adapter(base: str, adapt: dict[str, Any], folder: Path) -> Path:
    """Write an adapter in which every parameter was changed, magnitudes by about a third."""
    model, _ = mmdora.load(base)
    mmdora.inject(model, adapt)
    torch.manual_seed(1)
    with torch.no_grad():
        for _, parameter, _, kind in trainable_parameters(model):
            if kind == "magnitude":
                parameter.mul_(1 + 0.3 * torch.randn_like(parameter))
            else:
                parameter.add_(0.1 * parameter.abs().mean().clamp_min(0.05) * torch.randn_like(parameter))
    mmdora.save_adapter(model, folder, base=base)
    return folder


def run_folder(folder: Path, adapter: Path, tiny_llava: str, **data: Any) -> Path:
    """Write the parts of a run folder that an export reads, with this adapter as its result."""
    shutil.copytree(adapter, folder / "adapter")
    tree = {"model": {"base": str(tiny_llava)}, "adapt": DORA, "data": data}
    validate(RunConfig, tree, where=str).save(folder / "config.yaml")
    return folder


def refuse_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make every merge from disk fail from now on, so that the merge in memory is used."""

    def refuse(*_):
        raise UnsureError("a test says so")

    monkeypatch.setattr(room, "DiskMerge", refuse)


def same_files(a: Path, b: Path) -> set[str]:
    """The names of files that are in both folders and are equal, byte for byte."""
    theirs = {path.name: path.read_bytes() for path in b.iterdir() if path.is_file()}
    return {path.name for path in a.iterdir() if path.is_file() and theirs.get(path.name) == path.read_bytes()}
