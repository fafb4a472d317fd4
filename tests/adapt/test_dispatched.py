"""A base that `device_map` has spread or offloaded is refused in one line; one on a single device is not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import cpu_offload, disk_offload, dispatch_model
from shrunken import shrunken_llava

import mmdora
from mmdora.errors import MmdoraError

ADAPT = {"language": {"method": "dora", "rank": 4}, "projector": {"method": "lora", "rank": 2}}
PARTS = ("model.vision_tower", "model.multi_modal_projector", "model.language_model", "lm_head")
CPU = torch.device("cpu")
WAYS: dict[str, Callable[[Any, Path], Any]] = {
    "spread": lambda model, folder: dispatch_model(model, dict.fromkeys(PARTS, "cpu"), force_hooks=True),
    "a part on disk": lambda model, folder: dispatch_model(
        model, {**dict.fromkeys(PARTS, "cpu"), "lm_head": "disk"}, offload_dir=folder, main_device=CPU
    ),
    "all in main memory": lambda model, folder: cpu_offload(model, CPU),
    "all on disk": lambda model, folder: disk_offload(model, folder, CPU),
}


@pytest.mark.parametrize("way", WAYS)
def test_refused_in_one_line(way: str, tmp_path: Path) -> None:
    model: Any = shrunken_llava()
    WAYS[way](model, tmp_path)
    with pytest.raises(MmdoraError, match=r"^this base is spread by device_map, or offloaded .*; load it onto one .*$"):
        mmdora.inject(model, ADAPT)


def test_one_device_is_fine() -> None:
    model: Any = dispatch_model(shrunken_llava(), {"": "cpu"})
    assert mmdora.inject(model, ADAPT).entries
