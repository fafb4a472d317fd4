"""A quantised base in two processes over gloo: DDP trains as one process does, and FSDP2 is refused in one line."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from processes import FSDP2, finished, launched, of_the_launcher
from safetensors.torch import load_file
from tiny_run import config_of, curve, first_turns, silent, tree_for

import mmdora
from mmdora.models.quantize import saved_settings
from mmdora.train import train

pytest.importorskip("bitsandbytes", reason="pip install 'mmdora[quantize]'")

ADAPTER = "adapter/adapter_model.safetensors"


@pytest.fixture(scope="module")
def records(scene_records: Path) -> Path:
    """Eight rows, one of them text only."""
    return first_turns(scene_records, 8)


def tree(records: Path, output: Path, model: dict[str, Any]) -> dict[str, Any]:
    """Two steps of four rows, without dropout, which processes draw apart."""
    found = tree_for(records, output, evaluates=False, steps=2, save_every=2) | {"model": model}
    found["adapt"]["language"]["dropout"] = 0.0
    return found


def two(values: dict[str, Any], settings: dict[str, str]) -> tuple[list[int], list[str]]:
    """Exit codes and errors of two processes, each with half the accumulation and `settings` in its environment."""
    output = Path(values["training"]["output"])
    values["training"] |= {"accumulation": 1}
    (path := output.with_suffix(".yaml")).write_text(yaml.safe_dump(values))
    told = output.parent / "told"
    codes = finished(launched(["train", str(path)], told, 2, lambda index: os.environ.update(settings)))
    return codes, [(told / f"{index}.stderr").read_text() for index in range(2)]


def test_two_processes_are_one(records: Path, tmp_path: Path) -> None:
    alone = train(config_of(tree(records, tmp_path / "alone", {"quantize": "nf4"})), say=silent)
    codes, told = two(tree(records, tmp_path / "pair", {"quantize": "nf4"}), {})
    assert codes == [0, 0], told
    ours, theirs = ([entry["loss"] for entry in curve(run) if "loss" in entry] for run in (tmp_path / "pair", alone))
    assert len(ours) == 2 and ours == pytest.approx(theirs, rel=1e-5)
    one, other = (load_file(run / ADAPTER) for run in (tmp_path / "pair", alone))
    assert one.keys() == other.keys() and any(tensor.any() for name, tensor in one.items() if "lora_B" in name)
    for name, tensor in other.items():
        torch.testing.assert_close(one[name], tensor, rtol=1e-4, atol=1e-5)


def sharding() -> dict[str, str]:
    return {name: value for name, value in of_the_launcher(FSDP2).items() if "FSDP" in name}


def test_sharding_packed_weights_is_refused(records: Path, tiny_llava: str, tmp_path: Path) -> None:
    model, processor = mmdora.load(tiny_llava, quantize="nf4")
    saved_settings(model)
    for saved in (model, processor):
        saved.save_pretrained(tmp_path / "packed")
    for number, own in enumerate(({"quantize": "nf4"}, {"base": str(tmp_path / "packed")})):
        codes, told = two(tree(records, tmp_path / f"run-{number}", own), sharding())
        assert codes == [2, 2]
        assert "a quantised base cannot be used with FSDP or DeepSpeed" in "".join(told)
        assert "Traceback" not in "".join(told)
