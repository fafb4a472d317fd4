"""Kernels or plain torch: tried by one launch, or chosen by a switch. No GPU is needed to see either."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from mmdora.config import Model, RunConfig, Training
from mmdora.errors import MmdoraError
from mmdora.ops import backend
from mmdora.train.check import device_notes

pytest.importorskip("triton", reason="torch brings no Triton on this platform")
GPU = torch.device("cuda", 0)


@pytest.fixture(autouse=True)
def _untried(monkeypatch):
    monkeypatch.setattr(backend, "_problems", {})
    monkeypatch.delenv(backend.SWITCH, raising=False)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))


@pytest.fixture
def launches(monkeypatch) -> list[torch.device]:
    """The devices on which a launch was tried; it fails as it does where there is no compiler."""
    from mmdora.ops import kernels

    tried = []

    def no_compiler(device):
        tried.append(device)
        raise RuntimeError("Failed to find C compiler. Please specify via CC environment variable.\nmore")

    monkeypatch.setattr(kernels, "try_launch", no_compiler)
    return tried


def on_the_gpu(dtype: torch.dtype = torch.bfloat16) -> Any:
    return SimpleNamespace(is_cuda=True, dtype=dtype, device=GPU)


def test_plain_torch_where_a_launch_fails_and_one_line(launches):
    line = backend.problem(GPU)
    assert line is not None and "\n" not in line
    assert line.startswith("Triton cannot launch a kernel here (RuntimeError: Failed to find C compiler. Please")
    assert "Python.h" in line and "MMDORA_TRITON=0" in line
    assert not backend.on_triton(on_the_gpu()) and backend.problem(GPU) == line
    assert launches == [GPU]


def test_a_warning_where_nobody_asked_before(launches):
    with pytest.warns(UserWarning, match="Triton cannot launch a kernel here") as told:
        assert not backend.on_triton(on_the_gpu()) and not backend.on_triton(on_the_gpu())
    assert len(told) == 1


def test_a_launch_that_really_fails():
    """Triton itself refuses, because there is no GPU."""
    if torch.cuda.is_available():
        pytest.skip("needs a machine without a GPU")
    assert "Triton cannot launch a kernel here (" in str(backend._tried(torch.device("cpu")))


def test_kernels_where_a_launch_works(monkeypatch):
    from mmdora.ops import kernels

    monkeypatch.setattr(kernels, "try_launch", lambda device: None)
    assert backend.problem(GPU) is None and backend.on_triton(on_the_gpu())
    assert not backend.on_triton(on_the_gpu(torch.float64)) and not backend.on_triton(torch.ones(1))


def test_memory_that_ran_out_is_no_reason_for_plain_torch(monkeypatch):
    from mmdora.ops import kernels

    def full(device):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(kernels, "try_launch", full)
    with pytest.raises(torch.OutOfMemoryError):
        backend.problem(GPU)


def test_the_switch(monkeypatch, launches):
    monkeypatch.setenv("MMDORA_TRITON", "0")
    assert backend.problem(GPU) == "MMDORA_TRITON=0: plain torch computes instead of the Triton kernels"
    assert not backend.on_triton(on_the_gpu()) and not launches
    monkeypatch.setenv("MMDORA_TRITON", "no")
    monkeypatch.setattr(backend, "_problems", {})
    with pytest.raises(MmdoraError, match="MMDORA_TRITON=no: must be 0 "):
        backend.problem(GPU)


def test_a_compiled_graph_takes_the_answer_as_a_constant(launches):
    class Layer(nn.Module):
        def forward(self, x):
            return x + 1 if backend._works(0) else x - 1

    assert backend.problem(GPU) is not None  # A run asks before; torch swallows warnings while it compiles.
    y = torch.compile(Layer(), backend="eager", fullgraph=True)(torch.zeros(1))
    assert y == -1 and launches == [GPU]


def test_what_a_run_is_told(monkeypatch, launches):
    config = RunConfig(model=Model(base="tiny-llava", dtype="bf16"), training=Training(precision="bf16"))
    assert device_notes(config, torch.device("cpu")) == []
    assert [note[:13] for note in device_notes(config, GPU)] == ["Triton cannot"]
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Tesla T4")
    assert device_notes(config, GPU)[1].startswith("Tesla T4 has no units for bf16 and emulates it, which is slow")
    in_fp32 = RunConfig(model=Model(base="tiny-llava"))
    assert len(device_notes(in_fp32, GPU)) == 1
