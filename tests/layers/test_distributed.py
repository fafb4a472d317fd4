"""Two processes on the CPU: DDP's gradients and FSDP2's training are those of one process with the whole batch."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from layer_cases import max_rel

sys.path.insert(0, str(Path(__file__).parent))
import distributed_worker as worker

WORKER = Path(worker.__file__)


@pytest.fixture(scope="module")
def ranks(tmp_path_factory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("ranks")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen(
            [sys.executable, WORKER, str(rank), folder], env=environment, stderr=subprocess.PIPE, text=True
        )
        for rank in (0, 1)
    ]
    for process in processes:
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors[-3000:]
    return [torch.load(folder / f"{rank}.pt") for rank in (0, 1)]


def test_gradients_under_ddp(ranks):
    net = worker.Net()
    expected = worker.gradients(net, net, None)
    for found in ranks:
        assert found["ddp"].keys() == expected.keys()
        assert all(max_rel(found["ddp"][name], gradient) <= 1e-6 for name, gradient in expected.items())


@pytest.mark.parametrize("how", ["fsdp", "fsdp kept"])
def test_training_and_writes_under_fsdp2(ranks, how):
    expected = worker.train(worker.Net(), None)
    for found in ranks:
        assert found[how].keys() == expected.keys()
        # AdamW makes as much of the tiny gradients of an attention's keys, and of their rounding, as of large ones
        wrong = {n: max_rel(found[how][n], t) for n, t in expected.items() if max_rel(found[how][n], t) > 1e-5}
        assert not wrong
