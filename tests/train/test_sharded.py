"""FSDP2 in two processes, one of which has no image: it does not wait forever, and its files are one process's."""

import multiprocessing
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

sys.path.insert(0, str(Path(__file__).parent))
import sharded_worker as worker

from mmdora.adapter_files.adapters import load_adapter, save_adapter


@pytest.fixture(scope="module")
def sharded(tmp_path_factory) -> tuple[Path, list[dict[str, Any]]]:
    folder = tmp_path_factory.mktemp("sharded")
    context = multiprocessing.get_context("fork")  # torch is imported already
    processes = [context.Process(target=worker.main, args=(rank, folder)) for rank in (0, 1)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
        assert process.exitcode == 0
    return folder, [torch.load(folder / f"{rank}.pt") for rank in (0, 1)]


def test_everything_is_spread(sharded):
    for found in sharded[1]:
        assert all(found["spread"].values()) and found["again"] == found["spread"]
        assert set(found["moments"]) == {"DTensor"}


def test_adapter_and_optimizer_are_those_of_one_process(sharded, tmp_path):
    model, optimizer = worker.alone()
    save_adapter(model, tmp_path / "alone", base="test")
    ours, theirs = (
        load_file(path / "adapter_model.safetensors") for path in (sharded[0] / "adapter", tmp_path / "alone")
    )
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        torch.testing.assert_close(ours[name], tensor, rtol=1e-4, atol=1e-5)
    assert not all(torch.equal(tensor, torch.zeros_like(tensor)) for name, tensor in ours.items() if "lora_B" in name)
    fresh = worker.shrunken_llava(vision_feature_layer=-2)
    load_adapter(fresh, sharded[0] / "adapter")  # whole: it fits an untouched base
    expected = optimizer.state_dict()["state"]
    for found in sharded[1]:
        state = found["state"]["state"]
        assert state.keys() >= expected.keys()
        for index, kept in expected.items():
            torch.testing.assert_close(state[index]["exp_avg"], kept["exp_avg"], rtol=1e-3, atol=1e-6)
